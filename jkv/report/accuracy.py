"""How right a run's samples are: the accuracy part of summary.json."""

from collections.abc import Sequence
from typing import Any

from jkv.report.statistics import by_problem, interval, majority_at_k, pass_at_1, pass_at_k
from jkv.terminal.text import squeeze

_NAMES = ("pass_at_1", "maj_at_k")


def accuracy(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Pass@1 and maj@k with their intervals, and pass@k by k, over the graded ``rows`` of samples.jsonl.

    pass_at_k has powers of two up to the fewest graded samples of a problem, and that number. All are None where no
    sample is graded.
    """
    graded = [row for row in rows if row["correct"] is not None]
    if not graded:
        return {name + end: None for name in _NAMES for end in ("", "_low", "_high")} | {"pass_at_k": None}
    # In the order of samples, not of finishing, so that the vote's ties don't depend on the batch.
    graded = sorted(graded, key=lambda row: (row["id"], row["sample"]))
    ids = [row["id"] for row in graded]
    correct = by_problem(ids, [float(row["correct"]) for row in graded])
    answers = by_problem(ids, [None if row["answer"] is None else squeeze(row["answer"]) for row in graded])
    hits = [[hit] for hit in majority_at_k(answers, correct)]
    found: dict[str, Any] = {}
    for name, values in zip(_NAMES, (correct, hits), strict=True):
        low, high = interval(values)
        found |= {name: pass_at_1(values), f"{name}_low": low, f"{name}_high": high}
    return found | {"pass_at_k": {str(k): sum(p := pass_at_k(correct, k)) / len(p) for k in _sizes(correct)}}


def _sizes(correct: Sequence[Sequence[float]]) -> list[int]:
    fewest = min(len(samples) for samples in correct)
    return sorted({2**i for i in range(fewest.bit_length())} | {fewest})
