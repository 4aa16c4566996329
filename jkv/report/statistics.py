"""Metrics over samples of many problems: Pass@1, pass@k, majority vote, and clustered bootstrap intervals.

``correct`` is everywhere one list of 0/1 a problem, its samples. Intervals are 95 % percentile bootstrap intervals that
resample problems: samples of one problem aren't independent and stay together.
"""

import collections
import math
from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar

import numpy as np

_V = TypeVar("_V")
Correct = Sequence[Sequence[float]]


def by_problem(ids: Iterable[Hashable], values: Iterable[_V]) -> list[list[_V]]:
    """Values grouped by problem, in order of first appearance."""
    groups: dict[Hashable, list[_V]] = {}
    for problem, value in zip(ids, values, strict=True):
        groups.setdefault(problem, []).append(value)
    return list(groups.values())


def pass_at_1(correct: Correct) -> float:
    """Mean over problems of the mean over samples."""
    return float(np.mean([np.mean(samples) for samples in correct]))


def pass_at_k(correct: Correct, k: int) -> list[float]:
    """For each problem, how likely one of k samples drawn from its n without replacement is right.

    1 - C(n - c, k) / C(n, k) with c right ones, an unbiased estimate (Chen et al. 2021, arXiv:2107.03374, equation 1).
    Raises ValueError for a problem with fewer than k samples.
    """
    found = []
    for samples in correct:
        n, wrong = len(samples), sum(not right for right in samples)
        if n < k:
            raise ValueError(f"pass@{k} of {n} samples is not defined")
        found.append(1 - math.comb(wrong, k) / math.comb(n, k))
    return found


def majority_at_k(answers: Sequence[Sequence[str | None]], correct: Correct) -> list[float]:
    """For each problem, whether its most frequent answer is right.

    The earliest sampled wins a tie, no answer never wins.
    """
    hits = []
    for given, right in zip(answers, correct, strict=True):
        votes = collections.Counter(answer for answer in given if answer is not None)
        hits.append(right[given.index(votes.most_common(1)[0][0])] if votes else 0.0)
    return hits


def interval(correct: Correct, *, draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """The interval of ``pass_at_1``."""
    means = np.array([np.mean(samples) for samples in correct])
    return _ends(_resampled(means, draws, np.random.default_rng(seed)))


def paired_difference(
    ours: Correct, theirs: Correct, *, draws: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """``pass_at_1(ours) - pass_at_1(theirs)`` and its interval, resampling problems in pairs.

    Entry i of both is the same problem: what makes it hard for both cancels out.
    """
    gaps = _gaps(ours, theirs)
    return float(gaps.mean()), *_ends(_resampled(gaps, draws, np.random.default_rng(seed)))


def mean_over_tasks(tasks: Sequence[Correct], *, draws: int = 10_000, seed: int = 0) -> tuple[float, float, float]:
    """Pass@1 averaged over tasks with equal weight, and its interval; problems are resampled within their task."""
    return _over_tasks([np.array([np.mean(samples) for samples in correct]) for correct in tasks], draws, seed)


def paired_difference_over_tasks(
    ours: Sequence[Correct], theirs: Sequence[Correct], *, draws: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """``paired_difference`` averaged over tasks with equal weight; entry i of both is the same task."""
    return _over_tasks([_gaps(a, b) for a, b in zip(ours, theirs, strict=True)], draws, seed)


def _gaps(ours: Correct, theirs: Correct) -> np.ndarray:
    return np.array([np.mean(a) - np.mean(b) for a, b in zip(ours, theirs, strict=True)])


def _over_tasks(tasks: Sequence[np.ndarray], draws: int, seed: int) -> tuple[float, float, float]:
    rng = np.random.default_rng(seed)
    resampled = np.mean([_resampled(values, draws, rng) for values in tasks], axis=0)
    return float(np.mean([values.mean() for values in tasks])), *_ends(resampled)


def _resampled(values: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Means of ``draws`` samples with replacement."""
    n, at_once = len(values), max(1, 2**22 // len(values))  # a block of indices takes 32 MiB
    blocks = [rng.integers(0, n, (min(at_once, draws - done), n)) for done in range(0, draws, at_once)]
    return np.concatenate([values[block].mean(axis=1) for block in blocks])


def _ends(resampled: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return float(low), float(high)
