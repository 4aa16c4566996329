"""How good predicted importance is: rank correlation with the labels, and overlap with their top."""

from collections.abc import Iterable

import numpy as np

TOPS = (0.2, 0.3, 0.4)  # shares of the tokens whose overlap is reported


def spearman(predicted: np.ndarray, true: np.ndarray) -> float:
    """Spearman's rank correlation of two vectors [n]. Equal values share their mean rank. 0 if either is constant."""
    a, b = (_ranks(x) for x in (predicted, true))
    a, b = a - a.mean(), b - b.mean()
    size = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / size) if size else 0.0


def _ranks(x: np.ndarray) -> np.ndarray:
    """Ranks from 1, float64 [n]; equal values share their mean rank."""
    _, place, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place]


def overlap(predicted: np.ndarray, true: np.ndarray, share: float) -> float:
    """How much of the true top is in the predicted top of the same size.

    Args:
        predicted: importance of each token, [n].
        true: their labels, [n].
        share: size of the top as a share of n; it holds at least one token. Among equal values the newest belong to it.

    Returns:
        0 to 1.
    """
    n = max(1, int(share * len(true)))
    top = lambda x: set(np.lexsort((np.arange(len(x)), x))[-n:].tolist())
    return len(top(predicted) & top(true)) / n


def score_traces(pairs: Iterable[tuple[np.ndarray, np.ndarray]], prefix: str = "") -> dict[str, float]:
    """Means over traces of the rank correlation and the overlaps.

    Args:
        pairs: (predicted, true) of each trace, [n] both.
        prefix: put before the names.

    Returns:
        'spearman', 'top20', 'top30' and 'top40'.
    """
    rows = [[spearman(p, t), *(overlap(p, t, share) for share in TOPS)] for p, t in pairs]
    names = ["spearman", *(f"top{round(100 * share)}" for share in TOPS)]
    return {prefix + name: float(x) for name, x in zip(names, np.mean(rows, axis=0), strict=True)}


def baselines(labels: list[np.ndarray], seed: int) -> dict[str, dict[str, float]]:
    """`score_traces` of two orders that need no predictor, to compare with.

    Args:
        labels: of each trace, [n].
        seed: of the random order.

    Returns:
        Scores of 'random', a random order, and of 'recency', the newest first.
    """
    rng = np.random.default_rng([seed, 2])
    return {
        "random": score_traces((rng.random(len(x)), x) for x in labels),
        "recency": score_traces((np.arange(len(x)), x) for x in labels),
    }
