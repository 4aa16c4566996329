"""How good predicted importance is: rank correlation, and overlap with the true top."""

from collections.abc import Iterable

import numpy as np

TOPS = (0.2, 0.3, 0.4)


def spearman(predicted: np.ndarray, true: np.ndarray) -> float:
    """Rank correlation of two vectors; tied values share their mean rank. 0 if either is constant."""
    a, b = (_ranks(x) for x in (predicted, true))
    a, b = a - a.mean(), b - b.mean()
    size = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / size) if size else 0.0


def _ranks(x: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place]


def overlap(predicted: np.ndarray, true: np.ndarray, share: float) -> float:
    """Part of the true top ``share`` of tokens that is in the predicted top; among equals the newest."""
    n = max(1, int(share * len(true)))
    top = lambda x: set(np.lexsort((np.arange(len(x)), x))[-n:].tolist())
    return len(top(predicted) & top(true)) / n


def score_traces(pairs: Iterable[tuple[np.ndarray, np.ndarray]], prefix: str = "") -> dict[str, float]:
    """Means over traces of (predicted, true): 'spearman', 'top20', 'top30', 'top40'."""
    rows = [[spearman(p, t), *(overlap(p, t, share) for share in TOPS)] for p, t in pairs]
    names = ["spearman", *(f"top{round(100 * share)}" for share in TOPS)]
    return {prefix + name: float(x) for name, x in zip(names, np.mean(rows, axis=0), strict=True)}


def baselines(labels: list[np.ndarray], seed: int) -> dict[str, dict[str, float]]:
    """The same of predictors that know nothing: random order, and the newest first."""
    rng = np.random.default_rng([seed, 2])
    return {
        "random": score_traces((rng.random(len(x)), x) for x in labels),
        "recency": score_traces((np.arange(len(x)), x) for x in labels),
    }
