"""Metrics over the samples of many problems: Pass@1, pass@k, majority vote, and their bootstrap intervals.

``correct`` always holds one list a problem, with 1 for each right and 0 for each wrong sample. All metrics are
fractions (0 to 1), and differences of metrics are differences of fractions.

Intervals are 95 % percentile bootstrap intervals, clustered by problem: each draw takes as many problems as there are,
with replacement and each with all its samples; the interval reaches from the 2.5th to the 97.5th percentile of the
metric over all draws. Single samples are not resampled, because samples of one problem are not independent (the cluster
bootstrap of Field and Welsh, 2007, "Bootstrapping clustered data", J. R. Statist. Soc. B 69). Comparisons are paired by
problem, as recommended by Miller, 2024, "Adding Error Bars to Evals", arXiv:2411.00640.
"""

import collections
import math
from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar

import numpy as np

_V = TypeVar("_V")
Correct = Sequence[Sequence[float]]


def by_problem(ids: Iterable[Hashable], values: Iterable[_V]) -> list[list[_V]]:
    """Group values by their problem, in the order in which the problems first appear.

    Raises:
        ValueError: there are more values than ids, or fewer.
    """
    groups: dict[Hashable, list[_V]] = {}
    for problem, value in zip(ids, values, strict=True):
        groups.setdefault(problem, []).append(value)
    return list(groups.values())


def pass_at_1(correct: Correct) -> float:
    """Mean over problems of the fraction of a problem's samples that are right: every problem weighs the same."""
    return float(np.mean([np.mean(samples) for samples in correct]))


def pass_at_k(correct: Correct, k: int) -> list[float]:
    """For each problem, the estimated probability that at least one of k samples is right.

    With c right among n samples this is 1 - C(n - c, k) / C(n, k): the share of the ways to take k of the n samples
    that contain a right one. It is an unbiased estimate (Chen et al., 2021, arXiv:2107.03374, equation 1).

    Raises:
        ValueError: a problem has fewer than k samples.
    """
    found = []
    for samples in correct:
        n, wrong = len(samples), sum(not right for right in samples)
        if n < k:
            raise ValueError(f"pass@{k} of {n} samples is not defined")
        found.append(1 - math.comb(wrong, k) / math.comb(n, k))
    return found


def majority_at_k(answers: Sequence[Sequence[str | None]], correct: Correct) -> list[float]:
    """For each problem, 1 if its most frequent answer is right, else 0 (Wang et al., 2022, arXiv:2203.11171).

    k is the problem's number of samples. If several answers are the most frequent, the one that was sampled first
    counts. Samples without an answer (None) don't vote; if no sample has one, the result is 0.

    Args:
        answers: each problem's answers, in the order of its samples.
        correct: whether each of them is right.
    """
    hits = []
    for given, right in zip(answers, correct, strict=True):
        votes = collections.Counter(answer for answer in given if answer is not None)
        hits.append(right[given.index(votes.most_common(1)[0][0])] if votes else 0.0)
    return hits


def interval(correct: Correct, *, draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """Low and high end of the 95 % interval of ``pass_at_1``.

    Args:
        correct: one list of 0 and 1 a problem.
        draws: bootstrap draws.
        seed: of the draws; the same seed gives the same interval.
    """
    means = np.array([np.mean(samples) for samples in correct])
    return _percentiles(_resampled(means, draws, np.random.default_rng(seed)))


def paired_difference(
    ours: Correct, theirs: Correct, *, draws: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """``pass_at_1(ours) - pass_at_1(theirs)``, and the low and high end of its 95 % interval.

    The bootstrap resamples the differences of single problems. A problem that is hard for both has a small difference,
    so the interval is narrower than that of two independent estimates.

    Args:
        ours: one list of 0 and 1 a problem.
        theirs: the same; entry i of both is the same problem.
        draws: bootstrap draws.
        seed: of the draws.

    Raises:
        ValueError: the numbers of problems differ.
    """
    differences = _differences(ours, theirs)
    resampled = _resampled(differences, draws, np.random.default_rng(seed))
    return float(differences.mean()), *_percentiles(resampled)


def mean_over_tasks(tasks: Sequence[Correct], *, draws: int = 10_000, seed: int = 0) -> tuple[float, float, float]:
    """The mean of the tasks' Pass@1, and the low and high end of its 95 % interval.

    Every task weighs the same. A bootstrap draw resamples the problems of each task within the task.

    Args:
        tasks: ``correct`` of each task.
        draws: bootstrap draws.
        seed: of the draws.
    """
    return _over_tasks([np.array([np.mean(samples) for samples in correct]) for correct in tasks], draws, seed)


def paired_difference_over_tasks(
    ours: Sequence[Correct], theirs: Sequence[Correct], *, draws: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """The mean over tasks of ``paired_difference``, and the low and high end of its 95 % interval.

    Every task weighs the same. A bootstrap draw resamples the differences of each task within the task.

    Args:
        ours: ``correct`` of each task.
        theirs: the same; entry i of both is the same task, with the same problems.
        draws: bootstrap draws.
        seed: of the draws.

    Raises:
        ValueError: the numbers of tasks, or of a task's problems, differ.
    """
    return _over_tasks([_differences(a, b) for a, b in zip(ours, theirs, strict=True)], draws, seed)


def _differences(ours: Correct, theirs: Correct) -> np.ndarray:
    """For each problem, the difference of its fractions of right samples."""
    return np.array([np.mean(a) - np.mean(b) for a, b in zip(ours, theirs, strict=True)])


def _over_tasks(tasks: Sequence[np.ndarray], draws: int, seed: int) -> tuple[float, float, float]:
    rng = np.random.default_rng(seed)
    resampled = np.mean([_resampled(values, draws, rng) for values in tasks], axis=0)
    return float(np.mean([values.mean() for values in tasks])), *_percentiles(resampled)


def _resampled(values: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """The means of ``draws`` bootstrap samples of ``values`` [n], each of n values drawn with replacement: [draws]."""
    n, at_once = len(values), max(1, 2**22 // len(values))  # in blocks of about 32 MiB of indices
    blocks = [rng.integers(0, n, (min(at_once, draws - done), n)) for done in range(0, draws, at_once)]
    return np.concatenate([values[block].mean(axis=1) for block in blocks])


def _percentiles(resampled: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return float(low), float(high)
