"""Paired differences against closed forms; results.csv and results.md hold what the runs say."""

import csv
import io

import numpy as np
import pytest
import scipy.stats

from jkv.report.results import BASELINE, Result, difference, results_csv, results_markdown
from jkv.report.statistics import paired_difference

SUMMARY = {
    "model": "m", "retain": 6, "window": 1, "sinks": 0, "pin_prompt": False, "granularity": "shared", "samples": 2,
    "pass_at_1": 0.5, "pass_at_1_low": 0.25, "pass_at_1_high": 0.75, "maj_at_k": None, "truncation_rate": 0.125,
    "mean_tokens": 3.0, "tps": 1234.5, "tps_paper": None, "evictions": 4, "peak_slots": 8, "mean_slots": 7.0,
    "kv_bytes": 10, "kv_bytes_full": 20, "batch_size": 2, "recompiles": 0, "device": "cpu",
}  # fmt: skip


def test_the_interval_is_that_of_the_paired_t_statistics_bootstrap():
    """scipy's percentile bootstrap of the mean of the gaps is the same thing."""
    rng = np.random.default_rng(0)
    ours, theirs = (rng.integers(0, 2, (60, 3)).astype(float) for _ in range(2))
    mean, low, high = paired_difference(ours.tolist(), theirs.tolist())
    gaps = ours.mean(1) - theirs.mean(1)
    expected = scipy.stats.bootstrap((gaps,), np.mean, method="percentile", n_resamples=10_000, rng=1)
    assert mean == pytest.approx(gaps.mean())
    np.testing.assert_allclose([low, high], expected.confidence_interval, atol=0.01)


def test_a_gap_that_is_the_same_everywhere_is_certain():
    """Unpaired intervals of these would overlap widely; in pairs nothing is uncertain."""
    theirs = [[0.0, 1.0], [0.0, 0.0]] * 10
    ours = [[0.5, 1.5], [0.5, 0.5]] * 10
    assert paired_difference(ours, theirs) == (0.5, 0.5, 0.5)


def test_differences_are_over_the_problems_that_both_have():
    one = Result("a", 8, "t", SUMMARY, {"x": [1.0], "y": [1.0]})
    other = Result("b", 8, "t", SUMMARY, {"y": [0.0], "z": [1.0]})
    assert difference(one, other) == (1.0, 1.0, 1.0)
    assert difference(one, Result("b", 8, "t", SUMMARY, {"z": [1.0]})) is None
    assert difference(Result("a", 8, "t", SUMMARY, {}), other) is None


def test_files():
    results = [
        Result("full", None, "t", {**SUMMARY, "pass_at_1": 1.0}, {"x": [1.0], "y": [1.0]}),
        Result(BASELINE, 8, "t", SUMMARY, {"x": [1.0], "y": [0.0]}),
        Result("mine", 8, "t", SUMMARY, {"x": [1.0], "y": [1.0]}),
        Result("mine", 16, "t", {**SUMMARY, "pass_at_1": None}, {}),
    ]
    rows = list(csv.DictReader(io.StringIO(results_csv(results))))
    assert [row["budget"] for row in rows] == ["", "8", "8", "16"]
    assert float(rows[2]["vs_random"]) == 0.5
    assert float(rows[2]["vs_full"]) == 0.0
    assert rows[3]["pass_at_1"] == rows[3]["vs_full"] == ""
    text = results_markdown(results)
    assert "| mine | 50.0 [25.0, 75.0] | - |" in text
    assert "| mine | 1,234, 12.5 % | 1,234, 12.5 % |" in text
    assert "| mine | +50.0 [+0.0, +100.0] | - |" in text
