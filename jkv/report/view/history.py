"""One sample's history in the KV buffer, read from a run directory that ``jkv.decode --trace`` wrote.

Only JSON and NumPy: a run can be looked at without its model, its tokenizer, its task, or JAX.
"""

import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from jkv.errors import UserError

SAMPLES, TRACE, SUMMARY = "samples.jsonl", "trace.jsonl", "summary.json"
_FLOAT32_MAX = float(np.finfo(np.float32).max)
# How decode begins a line of trace.jsonl. Lines of other samples need not be parsed: a trace can be large.
_OWNER = re.compile(rb'\{"id": ("(?:[^"\\]|\\.)*"), "sample": (-?\d+), ')


@dataclasses.dataclass(frozen=True)
class Rule:
    """The budget words of a run, as its summary.json has them. ``budget`` None: there is no summary (the run was
    stopped); the other words are then unknown and stand at nothing."""

    model: str = ""
    policy: str = ""
    budget: int | None = None
    retain: int | None = None
    window: int = 0
    sinks: int = 0
    pin_prompt: bool = False


@dataclasses.dataclass(frozen=True)
class History:
    """What became of each of a sample's n tokens (prompt and completion) at each of its E evictions.

    pieces: the tokens' text, n strings.  positions: [E], the newest token's position at each eviction.
    kept: [E], slots occupied right after it.  gone: [l, k, n], the eviction (0 .. E-1) that dropped a token from that
    keep set, E if none did; l = k = 1 when all heads share one.  scores: for each eviction [l, k, m]: of the m tokens
    that were there before it, in order of position, +inf where protected; None if the trace has none.
    text_missing: the run has no pieces, so tokens are shown as numbers.
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
        """n, tokens of prompt and completion."""
        return len(self.pieces)

    @property
    def evictions(self) -> int:
        """E."""
        return len(self.positions)

    def held(self, after: int) -> np.ndarray:
        """[n] in 0..1: the share of keep sets that hold each token after so many evictions (written or not)."""
        return (self.gone >= after).mean((0, 1))


def read_history(run: str | pathlib.Path, id: str | None = None, sample: int | None = None) -> History:
    """The history of a sample: by default the one with the most evictions. Raises UserError for a directory without a
    trace, an id or sample that it hasn't, and lines that are torn or contradict each other."""
    path = pathlib.Path(run).expanduser()
    row = _choose(path, id, sample)
    return _history(path, row, read_rule(path))


def common_sample(runs: list[pathlib.Path], id: str | None, sample: int | None) -> tuple[str, int]:
    """The (id, sample) that all runs have, of the one asked for: the one with the most evictions. Raises UserError
    if there is none."""
    every = [{(row["id"], row["sample"]): row["evictions"] for row in read_samples(run)} for run in runs]
    wanted = lambda key: (id is None or key[0] == id) and (sample is None or key[1] == sample)
    asked = " and ".join(f"{k} {v!r}" for k, v in (("id", id), ("sample", sample)) if v is not None)
    for run, keys in zip(runs, every, strict=True):
        if asked and not any(map(wanted, keys)):
            raise UserError(f"has no sample of {asked}", where=str(run / SAMPLES), mend=_some(keys))
    shared = [key for key in every[0] if wanted(key) and all(key in keys for keys in every)]
    if not shared:
        what = f"have no sample in common{f' of {asked}' if asked else ''}"
        raise UserError(what, where=" and ".join(map(str, runs)), mend="compare runs of the same task")
    return max(shared, key=lambda key: min(keys[key] for keys in every))


def _some(keys: Any) -> str:
    ids = list(dict.fromkeys(key[0] for key in keys))
    return "it has " + ", ".join(f"{x!r}" for x in ids[:3]) + (f" and {len(ids) - 3} more ids" if len(ids) > 3 else "")


def _choose(path: pathlib.Path, id: str | None, sample: int | None) -> dict[str, Any]:
    key = common_sample([path], id, sample)
    return next(row for row in read_samples(path) if (row["id"], row["sample"]) == key)


def read_rule(path: pathlib.Path) -> Rule:
    """The budget words of a run."""
    try:
        summary = json.loads((path / SUMMARY).read_bytes())
        return Rule(**{f.name: summary[f.name] for f in dataclasses.fields(Rule)})
    except FileNotFoundError:
        return Rule()
    except (ValueError, KeyError, TypeError):
        raise UserError("is damaged", where=str(path / SUMMARY), mend="run the same decode command again") from None


@functools.lru_cache(maxsize=4)
def _lines(path: pathlib.Path, stamp: tuple[int, int]) -> tuple[bytes, ...]:
    del stamp  # a file that has changed is read again
    data = path.read_bytes()
    *lines, rest = data.split(b"\n")
    if rest:
        mend = "run the same decode command again: it cuts it off and continues"
        raise UserError("its last line is torn", where=f"{path}:{len(lines) + 1}", mend=mend)
    return tuple(lines)


def _read_lines(path: pathlib.Path) -> tuple[bytes, ...]:
    stat = path.stat()
    return _lines(path, (stat.st_mtime_ns, stat.st_size))


def read_samples(path: pathlib.Path) -> list[dict[str, Any]]:
    """The finished samples of a run."""
    if not path.is_dir():
        raise UserError("is no directory", where=str(path), mend="give the --out of a decode run")
    if (path / "runs").is_dir() and not (path / SAMPLES).is_file():
        mend = "decode what is to be seen once more, with python -m jkv.decode --trace"
        raise UserError("holds a sweep, whose runs write no trace", where=str(path), mend=mend)
    if not (path / SAMPLES).is_file() or not (path / TRACE).is_file():
        what = f"has no {TRACE if (path / SAMPLES).is_file() else SAMPLES}"
        raise UserError(what, where=str(path), mend="write one with python -m jkv.decode --trace --out DIR")
    rows = []
    for number, line in enumerate(_read_lines(path / SAMPLES), 1):
        row = _object(line)
        kinds = {"id": str, "sample": int, "prompt_tokens": int, "token_ids": list, "evictions": int}
        if row is None or not all(type(row.get(name)) is kind for name, kind in kinds.items()):
            raise UserError("is not a sample", where=f"{path / SAMPLES}:{number}", mend="delete that line")
        rows.append(row)
    if not rows:
        raise UserError("has no finished sample yet", where=str(path / SAMPLES), mend="wait until one is finished")
    return rows


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _evictions(path: pathlib.Path, id: str, sample: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """This sample's lines of the trace, and where each stands."""
    for number, line in enumerate(_read_lines(path / TRACE), 1):
        where = f"{path / TRACE}:{number}"
        owner = _OWNER.match(line)
        if owner and (json.loads(owner[1]), int(owner[2])) != (id, sample):
            continue
        row = _object(line)
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
    books = _Books(tokens, sample["evictions"])
    for where, row in _evictions(path, sample["id"], sample["sample"]):
        books.add(row, where)
    if len(books.positions) != sample["evictions"]:
        what = f"has {len(books.positions)} of the {sample['evictions']} evictions of {sample['id']!r}"
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
        positions=np.array(books.positions, np.int64),
        kept=np.array(books.counts, np.int64),
        gone=books.gone if books.gone is not None else np.zeros((1, 1, tokens), np.int64),
        scores=tuple(books.scores) if books.scores and len(books.scores) == len(books.positions) else None,
        text_missing=missing,
    )


class _Books:
    """Evictions taken in one after the other: which tokens each dropped, checked against what was there before."""

    def __init__(self, tokens: int, evictions: int):
        self.tokens, self.evictions = tokens, evictions
        self.positions: list[int] = []
        self.counts: list[int] = []
        self.scores: list[np.ndarray] = []
        self.gone: np.ndarray | None = None
        self.there: np.ndarray | None = None

    def add(self, row: dict[str, Any], where: str) -> None:
        event = len(self.positions)
        position = row.get("position")
        last = self.positions[-1] if event else -1
        if row.get("event") != event or type(position) is not int or not last < position < self.tokens:
            raise UserError(f"is not eviction {event} of its sample", where=where, mend=_AGAIN)
        kept = _array(row.get("kept"), np.integer, where)
        if self.gone is None or self.there is None:
            shape = (*kept.shape[:2], self.tokens)
            self.gone, self.there = np.full(shape, self.evictions, np.int64), np.zeros(shape, bool)
        before = self.there
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
        self.there = after
        self.positions.append(position)
        self.counts.append(kept.shape[-1])


_AGAIN = "write the trace again, to a new --out"


def _array(value: Any, kind: type, where: str) -> np.ndarray:
    """A list, or one nested [layer][head], as [l, k, n]. Integers stay int64; floats are float32, +inf where None."""
    name = "kept" if kind is np.integer else "scores"
    try:
        # None becomes NaN, which JSON's numbers can't be.
        array = np.array(value, np.float64 if kind is np.floating else None)
    except (ValueError, TypeError, OverflowError):
        array = np.zeros(())
    wrong = array.ndim not in (1, 3) or (array.size and not np.issubdtype(array.dtype, kind))
    if wrong:
        what = f"its {name} are no list of numbers, nor one for each layer and head"
        raise UserError(what, where=where, mend=_AGAIN)
    if kind is np.floating:
        array = np.where(np.isnan(array), np.inf, np.clip(array, -_FLOAT32_MAX, _FLOAT32_MAX)).astype(np.float32)
    else:
        array = array.astype(np.int64)
    return array.reshape(1, 1, -1) if array.ndim == 1 else array
