"""The accuracy of a run's samples: the fields of summary.json that ``accuracy`` returns."""

from collections.abc import Sequence
from typing import Any

from jkv.report.statistics import by_problem, interval, majority_at_k, pass_at_1, pass_at_k
from jkv.terminal.text import squeeze

_NAMES = ("pass_at_1", "maj_at_k")


def accuracy(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Pass@1, majority vote and pass@k of a run (``jkv.report.statistics`` defines them).

    Args:
        rows: of samples.jsonl, in any order; those with ``correct`` None are left out.

    Returns:
        Fractions from 0 to 1: pass_at_1 and maj_at_k, each with the ends _low and _high of its 95 % interval, and
        pass_at_k, a dict from k (as text) to the mean over problems of pass@k. Its k are the powers of two up to the
        smallest number of graded samples of a problem, and that number. All values are None if no sample is graded.
    """
    graded = [row for row in rows if row["correct"] is not None]
    if not graded:
        return {name + end: None for name in _NAMES for end in ("", "_low", "_high")} | {"pass_at_k": None}
    # Sorted by sample, not in the order of finishing, so that ties of the vote don't depend on the batch.
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
    """The k for which every problem has at least k samples: powers of two, and the largest one."""
    fewest = min(len(samples) for samples in correct)
    return sorted({2**i for i in range(fewest.bit_length())} | {fewest})
