"""One sample's history in the KV buffer, read from a run directory that ``jkv.decode --trace`` wrote.

It needs only JSON and NumPy, so a run can be viewed without its model, tokenizer and task, and without JAX.
"""

import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from jkv.errors import UserError
from jkv.files.run_files import SAMPLE_FIELDS, SAMPLES, SUMMARY, TRACE, json_object, whole_lines

# The fields of a sample that a history needs.
_NEEDED = {name: SAMPLE_FIELDS[name] for name in ("id", "sample", "prompt_tokens", "token_ids", "evictions")}
_FLOAT32_MAX = float(np.finfo(np.float32).max)
# The beginning of a line of trace.jsonl as decode writes it. It shows to which sample a line belongs, so that a large
# trace needn't be parsed as a whole.
_OWNER = re.compile(rb'\{"id": ("(?:[^"\\]|\\.)*"), "sample": (-?\d+), ')


@dataclasses.dataclass(frozen=True)
class Rule:
    """The budget settings of a run, from its summary.json.

    Attributes:
        model: as given to ``--model``.
        policy: its name.
        budget: KV slots a row. None if the run has no summary.json because it isn't finished; the other settings are
            then unknown and have their defaults.
        retain: slots kept by an eviction.
        window: newest tokens, which are never evicted.
        sinks: first tokens, which are never evicted.
        pin_prompt: whether the prompt is never evicted.
    """

    model: str = ""
    policy: str = ""
    budget: int | None = None
    retain: int | None = None
    window: int = 0
    sinks: int = 0
    pin_prompt: bool = False


@dataclasses.dataclass(frozen=True)
class History:
    """What happened to each of a sample's n tokens (prompt and completion) in each of its E evictions.

    Attributes:
        run: the run's directory.
        id: of the sample's problem.
        sample: its number.
        rule: the run's budget settings.
        pieces: the text of each token.
        prompt_tokens: how many of the tokens are the prompt.
        thought_end: index of the first token of the answer, n if the thought never ends.
        finish: eos or length.
        answer: the sample's answer, if it has one.
        correct: None if it wasn't graded.
        positions: [E], the position of the newest token at each eviction.
        kept: [E], slots occupied after each eviction.
        gone: [l, k, n], the eviction (0 to E - 1) that dropped a token from the keep set of that layer and KV head; E
            if none did. l = k = 1 if all layers and heads share one keep set.
        scores: for each eviction, [l, k, m] the scores of the m tokens that were in the buffer before it, in order of
            position; +inf for protected tokens. None if the trace has no scores.
        text_missing: the run has no pieces; ``pieces`` then has token ids.
    """

    run: str
    id: str
    sample: int
    rule: Rule
    pieces: tuple[str, ...]
    prompt_tokens: int
    thought_end: int
    finish: str
    answer: str | None
    correct: bool | None
    positions: np.ndarray
    kept: np.ndarray
    gone: np.ndarray
    scores: tuple[np.ndarray, ...] | None
    text_missing: bool = False

    @property
    def tokens(self) -> int:
        """n, the tokens of prompt and completion together."""
        return len(self.pieces)

    @property
    def evictions(self) -> int:
        """E, the number of evictions."""
        return len(self.positions)

    def held(self, after: int) -> np.ndarray:
        """[n] the fraction of keep sets that hold each token after so many evictions; 1 for those not yet written."""
        return (self.gone >= after).mean((0, 1))


def read_history(run: str | pathlib.Path, id: str | None = None, sample: int | None = None) -> History:
    """Read the history of a sample.

    Args:
        run: the run's directory.
        id: of the sample's problem; None: any.
        sample: its number; None: any. Of several that match, the one with the most evictions is taken.

    Raises:
        UserError: the directory has no trace or no such sample, or lines are torn, no samples or evictions, or
            contradict each other.
    """
    path = pathlib.Path(run).expanduser()
    row = _choose(path, id, sample)
    return _history(path, row, read_rule(path))


def common_sample(runs: list[pathlib.Path], id: str | None, sample: int | None) -> tuple[str, int]:
    """Find a sample that all runs have.

    Args:
        runs: their directories.
        id: of the sample's problem; None: any.
        sample: its number; None: any.

    Returns:
        Its id and number. Of several that match, it is the one with the most evictions in the run that has the fewest
        of it.

    Raises:
        UserError: a run has no such sample, or all runs have none in common, or a run's samples can't be read.
    """
    every = [{(row["id"], row["sample"]): row["evictions"] for row in read_samples(run)} for run in runs]
    wanted = lambda key: (id is None or key[0] == id) and (sample is None or key[1] == sample)
    asked = " and ".join(f"{k} {v!r}" for k, v in (("id", id), ("sample", sample)) if v is not None)
    for run, keys in zip(runs, every, strict=True):
        if asked and not any(map(wanted, keys)):
            raise UserError(f"has no sample of {asked}", where=str(run / SAMPLES), mend=_ids_there_are(keys))
    shared = [key for key in every[0] if wanted(key) and all(key in keys for keys in every)]
    if not shared:
        what = f"have no sample in common{f' of {asked}' if asked else ''}"
        raise UserError(what, where=" and ".join(map(str, runs)), mend="compare runs of the same task")
    return max(shared, key=lambda key: min(keys[key] for keys in every))


def _ids_there_are(keys: Iterable[tuple[str, int]]) -> str:
    ids = list(dict.fromkeys(key[0] for key in keys))
    return "it has " + ", ".join(f"{x!r}" for x in ids[:3]) + (f" and {len(ids) - 3} more ids" if len(ids) > 3 else "")


def _choose(path: pathlib.Path, id: str | None, sample: int | None) -> dict[str, Any]:
    key = common_sample([path], id, sample)
    return next(row for row in read_samples(path) if (row["id"], row["sample"]) == key)


def read_rule(path: pathlib.Path) -> Rule:
    """The budget settings of a run.

    Args:
        path: the run's directory.

    Raises:
        UserError: summary.json is damaged. That there is none is no error.
    """
    try:
        summary = json.loads((path / SUMMARY).read_bytes())
        return Rule(**{f.name: summary[f.name] for f in dataclasses.fields(Rule)})
    except FileNotFoundError:
        return Rule()
    except (ValueError, KeyError, TypeError):
        raise UserError("is damaged", where=str(path / SUMMARY), mend="run the same decode command again") from None


@functools.lru_cache(maxsize=4)
def _lines(path: pathlib.Path, stamp: tuple[int, int]) -> tuple[bytes, ...]:
    del stamp  # part of the cache's key, so that a file that has changed is read again
    lines, rest = whole_lines(path.read_bytes())
    if rest:
        mend = "run the same decode command again: it cuts it off and continues"
        raise UserError("its last line is torn", where=f"{path}:{len(lines) + 1}", mend=mend)
    return tuple(lines)


def _read_lines(path: pathlib.Path) -> tuple[bytes, ...]:
    stat = path.stat()
    return _lines(path, (stat.st_mtime_ns, stat.st_size))


def read_samples(path: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of the finished samples of a run.

    Args:
        path: the run's directory.

    Raises:
        UserError: it is no run with a trace, it has no finished sample, or a line is torn or no sample.
    """
    if not path.is_dir():
        raise UserError("is no directory", where=str(path), mend="give the --out of a decode run")
    if (path / "runs").is_dir() and not (path / SAMPLES).is_file():
        mend = "decode the run that you want to view again, with python -m jkv.decode --trace"
        raise UserError("holds a sweep, whose runs write no trace", where=str(path), mend=mend)
    if not (path / SAMPLES).is_file() or not (path / TRACE).is_file():
        what = f"has no {TRACE if (path / SAMPLES).is_file() else SAMPLES}"
        raise UserError(what, where=str(path), mend="write one with python -m jkv.decode --trace --out DIR")
    rows = []
    for number, line in enumerate(_read_lines(path / SAMPLES), 1):
        row = json_object(line, _NEEDED)
        if row is None:
            raise UserError("is not a sample", where=f"{path / SAMPLES}:{number}", mend="delete that line")
        rows.append(row)
    if not rows:
        raise UserError("has no finished sample yet", where=str(path / SAMPLES), mend="wait until one is finished")
    return rows


def _evictions(path: pathlib.Path, id: str, sample: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of this sample in the trace, each with its file and line for error messages."""
    for number, line in enumerate(_read_lines(path / TRACE), 1):
        where = f"{path / TRACE}:{number}"
        owner = _OWNER.match(line)
        if owner and (json.loads(owner[1]), int(owner[2])) != (id, sample):
            continue
        row = json_object(line)
        if row is None:
            raise UserError("is not an eviction", where=where, mend="write the trace again, to a new --out")
        if (row.get("id"), row.get("sample")) == (id, sample):
            yield where, row


def _history(path: pathlib.Path, sample: dict[str, Any], rule: Rule) -> History:
    prompt, ids = sample["prompt_tokens"], sample["token_ids"]
    tokens = prompt + len(ids)
    pieces = sample.get("pieces")
    if pieces is not None and not (
        isinstance(pieces, list) and len(pieces) == tokens and all(isinstance(piece, str) for piece in pieces)
    ):
        what = f"the pieces of {sample['id']!r} are not the text of its {tokens} tokens"
        raise UserError(what, where=str(path / SAMPLES), mend="write the run again, to a new --out")
    missing = pieces is None
    pieces = tuple(pieces or [*("[prompt] " for _ in range(prompt)), *(f"[{i}] " for i in ids)])
    replay = _Replay(tokens, sample["evictions"])
    for where, row in _evictions(path, sample["id"], sample["sample"]):
        replay.add(row, where)
    if len(replay.positions) != sample["evictions"]:
        what = f"has {len(replay.positions)} of the {sample['evictions']} evictions of {sample['id']!r}"
        raise UserError(what, where=str(path / TRACE), mend="write the run again, to a new --out")
    answer, correct = sample.get("answer"), sample.get("correct")
    ends = [i for i in range(prompt, tokens) if "</think>" in pieces[i]]
    return History(
        run=str(path),
        id=sample["id"],
        sample=sample["sample"],
        rule=rule,
        pieces=pieces,
        prompt_tokens=prompt,
        thought_end=ends[0] + 1 if ends else tokens,
        finish=str(sample.get("finish", "")),
        answer=answer if isinstance(answer, str) else None,
        correct=correct if isinstance(correct, bool) else None,
        positions=np.array(replay.positions, np.int64),
        kept=np.array(replay.counts, np.int64),
        gone=replay.gone if replay.gone is not None else np.zeros((1, 1, tokens), np.int64),
        scores=tuple(replay.scores) if replay.scores and len(replay.scores) == len(replay.positions) else None,
        text_missing=missing,
    )


class _Replay:
    """Replays a sample's evictions in order, and finds the tokens that each dropped.

    Attributes:
        positions, counts, scores, gone: those of ``History`` (counts is ``kept``).
        held: [l, k, n] booleans: which tokens each keep set holds after the last eviction; None before the first.
    """

    def __init__(self, tokens: int, evictions: int):
        self.tokens, self.evictions = tokens, evictions
        self.positions: list[int] = []
        self.counts: list[int] = []
        self.scores: list[np.ndarray] = []
        self.gone: np.ndarray | None = None
        self.held: np.ndarray | None = None

    def add(self, row: dict[str, Any], where: str) -> None:
        """Replay one eviction.

        Args:
            row: its line of trace.jsonl.
            where: the line's place, for error messages.

        Raises:
            UserError: it is not the next eviction, or it contradicts the one before.
        """
        event = len(self.positions)
        position = row.get("position")
        last = self.positions[-1] if event else -1
        if row.get("event") != event or type(position) is not int or not last < position < self.tokens:
            raise UserError(f"is not eviction {event} of its sample", where=where, mend=_AGAIN)
        kept = _array(row.get("kept"), np.integer, where)
        if self.gone is None or self.held is None:
            shape = (*kept.shape[:2], self.tokens)
            self.gone, self.held = np.full(shape, self.evictions, np.int64), np.zeros(shape, bool)
        before = self.held
        if kept.shape[:2] != before.shape[:2]:
            raise UserError("has another number of layers or heads than the line before", where=where, mend=_AGAIN)
        before[..., last + 1 : position + 1] = True
        if kept.size and (kept.min() < 0 or kept.max() > position or (np.diff(kept) <= 0).any()):
            raise UserError(f"its kept positions don't ascend from 0 to {position}", where=where, mend=_AGAIN)
        after = np.zeros_like(before)
        np.put_along_axis(after, kept, True, axis=-1)
        if (after & ~before).any():
            raise UserError("it keeps a token that an earlier eviction dropped", where=where, mend=_AGAIN)
        if row.get("scores") is not None:
            scores = _array(row["scores"], np.floating, where)
            if scores.shape != (*before.shape[:2], before[0, 0].sum()):
                what = f"has {scores.shape[-1]} scores for {before[0, 0].sum()} tokens"
                raise UserError(what, where=where, mend=_AGAIN)
            self.scores.append(scores)
        self.gone[before & ~after] = event
        self.held = after
        self.positions.append(position)
        self.counts.append(kept.shape[-1])


_AGAIN = "write the trace again, to a new --out"


def _array(value: Any, kind: type, where: str) -> np.ndarray:
    """A list of numbers, or one nested [layer][head], as an array [l, k, n].

    Positions (``kind`` np.integer) become int64. Scores (np.floating) become float32, with +inf for None.
    """
    name = "kept" if kind is np.integer else "scores"
    try:
        # NumPy turns None into NaN, which can't come from JSON's numbers.
        array = np.array(value, np.float64 if kind is np.floating else None)
    except (ValueError, TypeError, OverflowError):
        array = np.zeros(())
    wrong = array.ndim not in (1, 3) or (array.size and not np.issubdtype(array.dtype, kind))
    if wrong:
        what = f"its {name} are no list of numbers and no such list for each layer and head"
        raise UserError(what, where=where, mend=_AGAIN)
    if kind is np.floating:
        array = np.where(np.isnan(array), np.inf, np.clip(array, -_FLOAT32_MAX, _FLOAT32_MAX)).astype(np.float32)
    else:
        array = array.astype(np.int64)
    return array.reshape(1, 1, -1) if array.ndim == 1 else array
