"""Traces to learn from: completions that are right, ended by themselves, and hold exactly one thought and an answer."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from jkv.errors import UserError

THINK, END = "<think>", "</think>"


@dataclasses.dataclass(frozen=True)
class Trace:
    """A prompt and its completion as one sequence of tokens.

    A final end-of-sequence token is left out: decoding ends with it, so no step ever reads it.

    Attributes:
        id: the problem's.
        sample: which of the problem's completions it is, from 0.
        tokens: token ids.
        prompt_length: how many of them are the prompt.
        think_start: position of <think>, in the prompt or in the completion.
        think_end: position of </think>. The thinking tokens are those between the two.
    """

    id: str
    sample: int
    tokens: tuple[int, ...]
    prompt_length: int
    think_start: int
    think_end: int

    @property
    def length(self) -> int:
        """Tokens in all, prompt included."""
        return len(self.tokens)

    @property
    def thinking(self) -> slice:
        """Positions of the thinking tokens."""
        return slice(self.think_start + 1, self.think_end)


@dataclasses.dataclass(frozen=True)
class Counts:
    """How many completions became traces, and why the others did not.

    Attributes:
        completions: all of them.
        wrong: those whose answer isn't right, or isn't known to be.
        no_single_thought: of the others, those that didn't end by themselves, or don't hold exactly one thought and an
            answer.
        too_long: of the others, those with too many tokens.
        traces: what is left.
    """

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
    """Token ids of <think> and </think>.

    Args:
        tokenizer: a transformers tokenizer, None for a model that has none.
        name: what the model is called, for the message.

    Raises:
        UserError: the vocabulary doesn't have them.
    """
    vocabulary = {} if tokenizer is None else tokenizer.get_vocab()
    if THINK not in vocabulary or END not in vocabulary:
        what = f"the vocabulary has no {THINK if THINK not in vocabulary else END} token, so no thought to learn from"
        raise UserError(what, where=name, mend="use a reasoning model")
    return vocabulary[THINK], vocabulary[END]


def thought(tokens: Sequence[int], think: tuple[int, int]) -> tuple[int, int] | None:
    """Where the only thought of a sequence is.

    Args:
        tokens: the sequence's token ids.
        think: ids of <think> and </think>.

    Returns:
        The positions of <think> and </think>; None unless each is there once, with tokens in between and tokens after.
    """
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
    """The traces among finished samples.

    Args:
        rows: lines of samples.jsonl, in any order.
        prompts: token ids of each problem, by its id, in the order of the task.
        think: ids of <think> and </think>.
        eos_ids: ids of tokens that end a sequence.
        longest: tokens of a trace at most, prompt included.

    Returns:
        The traces, in the order of the task's problems and their samples, and how many completions are none and why.
    """
    order = {id: place for place, id in enumerate(prompts)}
    traces, wrong, no_single_thought, too_long, count = [], 0, 0, 0, 0
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
            no_single_thought += 1
        elif len(tokens) > longest:
            too_long += 1
        else:
            traces.append(Trace(row["id"], row["sample"], tokens, len(prompt), *span))
    return traces, Counts(count, wrong, no_single_thought, too_long, len(traces))


def hold_out(traces: Sequence[Trace], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Divide traces into those to train on and those to validate on, a problem's samples all on the same side.

    Args:
        traces: all of them.
        fraction: share of the problems to hold out; at least one is, and at least one isn't.
        seed: of the choice.

    Returns:
        Indices of the traces to train on, and of those held out.

    Raises:
        UserError: there are fewer than two problems.
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
