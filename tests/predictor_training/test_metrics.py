"""Rank correlation against scipy, overlap against sets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from jkv.predictor_training.metrics import baselines, overlap, score_traces, spearman

values = st.lists(st.integers(0, 5), min_size=2, max_size=30)


@given(st.data())
def test_spearman_is_scipys_with_ties_too(data):
    a = data.draw(values)
    b = data.draw(st.lists(st.integers(0, 5), min_size=len(a), max_size=len(a)))
    x, y = np.array(a, np.float32), np.array(b, np.float32)
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert spearman(x, y) == 0
    else:
        assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


def test_overlap():
    true = np.array([9.0, 8, 7, 1, 2, 3, 0, 0, 0, 0])
    assert overlap(true, true, 0.3) == 1
    assert overlap(-true, true, 0.3) == 0
    assert overlap(np.array([9.0, 0, 0, 8, 7, 0, 0, 0, 0, 0]), true, 0.3) == pytest.approx(1 / 3)
    # Among equals the newest: of a constant prediction the top 30 % are the last three.
    assert overlap(np.zeros(10), np.arange(10.0), 0.3) == 1
    assert overlap(np.zeros(3), np.array([1.0, 0, 0]), 0.2) == 0  # one token at least


def test_baselines_of_labels_without_order():
    rng = np.random.default_rng(0)
    known = baselines([rng.random(200) for _ in range(200)], seed=3)
    for name in ("random", "recency"):
        for share in (20, 30, 40):
            assert known[name][f"top{share}"] == pytest.approx(share / 100, abs=0.02)
        assert known[name]["spearman"] == pytest.approx(0, abs=0.02)
    perfect = score_traces([(np.arange(10.0), np.arange(10.0) ** 3)])
    assert perfect == {"spearman": pytest.approx(1), "top20": 1, "top30": 1, "top40": 1}
