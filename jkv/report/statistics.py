"""Metrics over samples of many problems: Pass@1 with a clustered bootstrap interval, and majority vote."""

import collections
from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar

import numpy as np

_V = TypeVar("_V")


def by_problem(ids: Iterable[Hashable], values: Iterable[_V]) -> list[list[_V]]:
    """Values grouped by problem, in order of first appearance."""
    groups: dict[Hashable, list[_V]] = {}
    for problem, value in zip(ids, values, strict=True):
        groups.setdefault(problem, []).append(value)
    return list(groups.values())


def pass_at_1(correct: Sequence[Sequence[float]]) -> float:
    """Mean over problems of the mean over samples. ``correct``: one list of 0/1 a problem."""
    return float(np.mean([np.mean(samples) for samples in correct]))


def interval(correct: Sequence[Sequence[float]], *, draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of ``pass_at_1``, resampling problems (samples of a problem stay together)."""
    means = np.array([np.mean(samples) for samples in correct])
    rng = np.random.default_rng(seed)
    resampled = [means[rng.integers(0, len(means), len(means))].mean() for _ in range(draws)]
    low, high = np.percentile(resampled, [2.5, 97.5])
    return float(low), float(high)


def paired_difference(
    ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]], *, draws: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """``pass_at_1(ours) - pass_at_1(theirs)`` and its 95 % bootstrap interval, resampling problems in pairs.

    Entry i of both is the same problem: what makes it hard for both cancels out.
    """
    gaps = np.array([np.mean(a) - np.mean(b) for a, b in zip(ours, theirs, strict=True)])
    rng = np.random.default_rng(seed)
    resampled = gaps[rng.integers(0, len(gaps), (draws, len(gaps)))].mean(axis=1)
    low, high = np.percentile(resampled, [2.5, 97.5])
    return float(gaps.mean()), float(low), float(high)


def majority_at_k(answers: Sequence[Sequence[str | None]], correct: Sequence[Sequence[float]]) -> float:
    """Share of problems whose most frequent answer is right; the earliest sampled wins a tie, no answer never wins."""
    hits = []
    for given, right in zip(answers, correct, strict=True):
        votes = collections.Counter(answer for answer in given if answer is not None)
        hits.append(right[given.index(votes.most_common(1)[0][0])] if votes else 0.0)
    return float(np.mean(hits))
