"""Traces to learn from: completions that are right and hold exactly one thought."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from jkv.errors import UserError

THINK, END = "<think>", "</think>"


@dataclasses.dataclass(frozen=True)
class Trace:
    """A prompt and its completion as one sequence of token ids, less a final end-of-sequence token (no decode step ever
    reads it). Thinking tokens are at positions ``think_start`` + 1 to ``think_end`` - 1."""

    id: str
    sample: int
    tokens: tuple[int, ...]
    prompt_length: int
    think_start: int
    think_end: int

    @property
    def length(self) -> int:
        """Tokens in all."""
        return len(self.tokens)

    @property
    def thinking(self) -> slice:
        """Positions of the thinking tokens."""
        return slice(self.think_start + 1, self.think_end)


@dataclasses.dataclass(frozen=True)
class Counts:
    """What became of the completions: how many there were, and why some are no traces."""

    completions: int
    wrong: int
    no_single_thought: int
    too_long: int
    traces: int

    def __str__(self) -> str:
        left_out = (
            f"{self.wrong} wrong, {self.no_single_thought} without exactly one thought and an answer, "
            f"{self.too_long} too long"
        )
        return f"{self.traces} traces of {self.completions} completions ({left_out})"


def think_tokens(tokenizer: Any, name: str) -> tuple[int, int]:
    """Token ids of <think> and </think>. Raises UserError if the model has none."""
    vocabulary = {} if tokenizer is None else tokenizer.get_vocab()
    if THINK not in vocabulary or END not in vocabulary:
        what = f"the vocabulary has no {THINK if THINK not in vocabulary else END} token, so no thought to learn from"
        raise UserError(what, where=name, mend="use a reasoning model")
    return vocabulary[THINK], vocabulary[END]


def thought(tokens: Sequence[int], think: tuple[int, int]) -> tuple[int, int] | None:
    """Positions of the only <think> and the only </think>, if a thought and an answer are there."""
    starts, ends = ([i for i, token in enumerate(tokens) if token == wanted] for wanted in think)
    if len(starts) != 1 or len(ends) != 1:
        return None
    (start,), (end,) = starts, ends
    return (start, end) if start + 1 < end < len(tokens) - 1 else None


def select_traces(
    rows: Iterable[dict[str, Any]],
    prompts: dict[str, tuple[int, ...]],
    *,
    think: tuple[int, int],
    eos_ids: Sequence[int],
    longest: int,
) -> tuple[list[Trace], Counts]:
    """The traces among finished samples (lines of samples.jsonl), in the order of problems and samples.

    prompts: token ids by problem id.  longest: tokens of a trace at most.
    """
    order = {id: place for place, id in enumerate(prompts)}
    traces, wrong, odd, long, count = [], 0, 0, 0, 0
    for row in sorted(rows, key=lambda row: (order[row["id"]], row["sample"])):
        count += 1
        if not row["correct"]:
            wrong += 1
            continue
        completion = row["token_ids"]
        if completion and completion[-1] in eos_ids:
            completion = completion[:-1]
        prompt = prompts[row["id"]]
        tokens = (*prompt, *completion)
        span = thought(tokens, think)
        if row["finish"] != "eos" or span is None:
            odd += 1
        elif len(tokens) > longest:
            long += 1
        else:
            traces.append(Trace(row["id"], row["sample"], tokens, len(prompt), *span))
    return traces, Counts(count, wrong, odd, long, len(traces))


def hold_out(traces: Sequence[Trace], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of the traces to train on and of those held out. A problem is on one side with all its samples.

    Raises UserError if either side would be empty.
    """
    import numpy as np

    ids = list(dict.fromkeys(trace.id for trace in traces))
    if len(ids) < 2:
        what = f"{len(ids)} problem with a correct trace: at least 2 are needed, one of them to validate on"
        raise UserError(what, where="--limit", mend="give more problems or samples")
    n = min(max(1, round(fraction * len(ids))), len(ids) - 1)
    held = {ids[i] for i in np.random.default_rng([seed, 1]).permutation(len(ids))[:n]}
    places = [[i for i, trace in enumerate(traces) if (trace.id in held) == side] for side in (False, True)]
    return places[0], places[1]
