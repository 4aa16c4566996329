"""Paired differences against closed forms; averages over tasks; results.csv and results.md hold what the runs say."""

import csv
import io

import numpy as np
import pytest
import scipy.stats

from jkv.report.results import BASELINE, MEAN, averages, difference, results_csv, results_markdown, results_tables
from jkv.report.statistics import paired_difference
from tests.report.results import result

RANDOM = {"policy": "random", "pin_prompt": True}


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
    one = result("a", 8, {"x": [1.0], "y": [1.0]})
    assert difference(one, result("b", 8, {"y": [0.0], "z": [1.0]})) == (1.0, 1.0, 1.0)
    assert difference(one, result("b", 8, {"z": [1.0]})) is None
    assert difference(result("a", 8, {}), one) is None
    assert difference(one, None) is None


def test_files():
    results = [
        result("full", None, {"x": [1.0], "y": [1.0]}, pass_at_1=1.0),
        result("chance", 8, {"x": [1.0], "y": [0.0]}, **RANDOM),
        result("mine", 8, {"x": [1.0], "y": [1.0]}),
        result("mine", 16, {}, pass_at_1=None, pass_at_k=None),
    ]
    rows = list(csv.DictReader(io.StringIO(results_csv(results))))
    assert [row["budget"] for row in rows] == ["", "8", "8", "16"]
    assert [(row["k"], row["pass_at_k"]) for row in rows] == [("2", "0.6")] * 3 + [("", "")]
    assert float(rows[2]["vs_random"]) == 0.5
    assert float(rows[2]["vs_full"]) == 0.0
    assert rows[3]["pass_at_1"] == rows[3]["vs_full"] == ""
    text = results_markdown(results)
    assert "| mine | 50.0 [25.0, 75.0] | - |" in text
    assert "| mine | 1,234, 12.5 % | 1,234, 12.5 % |" in text
    assert "| mine | +50.0 [+0.0, +100.0] | - |" in text
    assert "| chance | -50.0 [-100.0, +0.0] |  |" in text
    assert "| mine | 7, 8 | 7, 8 |" in text
    assert f"less that of {BASELINE}" in text


def test_without_a_rival_there_is_no_table_of_differences():
    assert "less that of" not in results_markdown([result("mine", 8, {"x": [1.0]})])


TWO_TASKS = [
    result("full", None, {"x": [1.0], "y": [1.0]}, task="s", tokens=100, wall_s=1.0),
    result("full", None, {"a": [1.0]}, task="t", tokens=100, wall_s=1.0),
    result("mine", 8, {"x": [1.0], "y": [0.0]}, task="s", tokens=100, wall_s=1.0, peak_slots=7, mean_slots=2.0),
    result("mine", 8, {"a": [1.0]}, task="t", tokens=500, wall_s=4.0, mean_slots=4.0, truncation_rate=0.375),
    result("mine", 16, {"x": [1.0]}, task="s"),
]


def test_the_average_weighs_tasks_equally_and_waits_for_all():
    full, mine = averages(TWO_TASKS)
    assert (full.budget, mine.budget) == (None, 8)  # 16 has run on one task only
    assert mine.summary["pass_at_1"] == (0.5 + 1.0) / 2
    assert (mine.summary["pass_at_1_low"], mine.summary["pass_at_1_high"]) == (0.5, 1.0)
    assert mine.summary["tps"] == 600 / 5
    assert mine.summary["mean_slots"] == 3.0
    assert mine.summary["truncation_rate"] == 0.25
    assert mine.summary["peak_slots"] == 8
    gap, low, high = difference(mine, full) or (0, 0, 0)
    assert (gap, low, high) == (-0.25, -0.5, 0.0)


def test_the_average_of_one_task_is_the_task():
    alone = [r for r in TWO_TASKS if r.task == "s"]
    assert averages(alone) == alone


def test_averages_are_in_the_files_and_on_the_screen():
    rows = list(csv.DictReader(io.StringIO(results_csv(TWO_TASKS))))
    assert [(row["task"], row["policy"]) for row in rows[len(TWO_TASKS) :]] == [(MEAN, "full"), (MEAN, "mine")]
    assert float(rows[-1]["vs_full"]) == -0.25
    assert "## m, mean over tasks\n" in results_markdown(TWO_TASKS)
    assert [str(table.title) for table in results_tables(TWO_TASKS)] == ["m, s", "m, t", "m, mean over tasks"]


def test_nothing_graded_has_no_average():
    ungraded = [result("a", 8, {}, task=task, pass_at_1=None) for task in ("s", "t")]
    (mean,) = averages(ungraded)
    assert mean.summary["pass_at_1"] is None


def test_pairs_are_of_the_same_problem():
    """Whatever the order in which two runs finished their problems."""
    one = result("a", 8, {"x": [1.0], "y": [0.0], "z": [0.0]})
    assert difference(one, result("b", 8, {"z": [0.0], "y": [0.0], "x": [1.0]})) == (0.0, 0.0, 0.0)


def test_compared_is_with_pinned_random_at_the_same_budget():
    results = [
        result("not pinned", 8, {"x": [1.0]}, policy="random"),
        result("chance", 16, {"x": [0.0]}, **RANDOM),
        result("chance", 8, {"x": [0.5]}, **RANDOM),
        result("mine", 8, {"x": [1.0]}),
        result("mine", 16, {"x": [1.0]}),
    ]
    rows = list(csv.DictReader(io.StringIO(results_csv(results))))
    assert [row["vs_random"] for row in rows] == ["0.5", "0.0", "0.0", "0.5", "1.0"]


def test_columns():
    (header,) = csv.reader(io.StringIO(results_csv([])))
    assert header == [
        "model", "task", "policy", "budget", "retain", "window", "sinks", "pin_prompt", "granularity", "samples",
        "ungraded", "pass_at_1", "pass_at_1_low", "pass_at_1_high", "k", "pass_at_k", "maj_at_k", "maj_at_k_low",
        "maj_at_k_high", "truncation_rate", "mean_tokens", "tokens", "wall_s", "compile_s", "tps", "tps_paper",
        "evictions", "peak_slots", "mean_slots", "kv_bytes", "kv_bytes_full", "batch_size", "recompiles", "device",
        "vs_full", "vs_full_low", "vs_full_high", "vs_random", "vs_random_low", "vs_random_high",
    ]  # fmt: skip
