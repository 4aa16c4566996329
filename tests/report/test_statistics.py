"""Metrics against closed forms and scipy."""

import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from jkv.report.statistics import (
    by_problem,
    interval,
    majority_at_k,
    mean_over_tasks,
    paired_difference,
    paired_difference_over_tasks,
    pass_at_1,
    pass_at_k,
)

HITS = st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=5), min_size=1, max_size=20)


@given(HITS)
def test_pass_at_1_is_the_mean_of_means(correct):
    assert pass_at_1(correct) == pytest.approx(sum(sum(x) / len(x) for x in correct) / len(correct))
    assert pass_at_1([[1.0], [0.0, 0.0, 0.0]]) == 0.5


@given(HITS, st.randoms())
def test_interval_holds_the_mean_and_ignores_the_order_of_samples(correct, random):
    low, high = interval(correct, draws=200)
    assert 0 <= low <= high <= 1
    assert low - 1e-9 <= pass_at_1(correct) or len(correct) < 8
    shuffled = [random.sample(samples, len(samples)) for samples in correct]
    assert interval(shuffled, draws=200) == pytest.approx((low, high))


def test_interval_of_two_problems_is_exact():
    """Resampling {0, 1} twice gives 0, 1/2, 1 with 1/4, 1/2, 1/4: the 2.5 % and 97.5 % points are 0 and 1."""
    assert interval([[0.0], [1.0]]) == (0.0, 1.0)
    assert interval([[1.0, 0.0]]) == (0.5, 0.5)
    assert interval([[1.0]] * 5) == (1.0, 1.0)


@pytest.mark.parametrize(("n", "p"), [(30, 0.5), (60, 0.2)])
def test_interval_is_the_binomial_quantile(n, p):
    """One sample a problem: the resampled sum is binomial, so its percentiles are known."""
    hits = round(n * p)
    low, high = interval([[1.0]] * hits + [[0.0]] * (n - hits))
    exact = scipy.stats.binom.ppf([0.025, 0.975], n, p) / n
    np.testing.assert_allclose([low, high], exact, atol=1 / n + 1e-12)


def test_interval_equals_scipys_percentile_bootstrap_of_clusters():
    rng = np.random.default_rng(1)
    correct = [list(map(float, rng.integers(0, 2, 5))) for _ in range(40)]
    means = np.mean(correct, axis=1)
    theirs = scipy.stats.bootstrap(
        (means,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(2)
    ).confidence_interval
    np.testing.assert_allclose(interval(correct), (theirs.low, theirs.high), atol=0.012)
    # Samples of a problem agree: treating them as independent would claim a narrower interval.
    agreeing = [[float(x)] * 5 for x in rng.integers(0, 2, 40)]
    low, high = interval(agreeing)
    flat_low, flat_high = interval([[x] for samples in agreeing for x in samples])
    assert high - low > 1.8 * (flat_high - flat_low)


def test_interval_is_reproducible():
    correct = [[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]]
    assert interval(correct) == interval(correct)


@pytest.mark.parametrize(
    ("answers", "correct", "expected"),
    [
        (["a", "b", "a"], [1.0, 0.0, 1.0], 1.0),
        (["a", "b", "b"], [1.0, 0.0, 0.0], 0.0),
        (["b", "a"], [0.0, 1.0], 0.0),
        ([None, None, "a"], [0.0, 0.0, 1.0], 1.0),
        ([None], [0.0], 0.0),
    ],
    ids=["majority right", "majority wrong", "tie: the earliest", "no answer never wins", "nothing"],
)
def test_majority(answers, correct, expected):
    assert majority_at_k([answers], [correct]) == [expected]


def test_majority_over_problems_equals_counting():
    """Of all ways to answer 3 times 'a' (right) or 'b', half have 'a' ahead."""
    answers = [list(x) for x in itertools.product("ab", repeat=3)]
    correct = [[float(x == "a") for x in given] for given in answers]
    assert np.mean(majority_at_k(answers, correct)) == 0.5


def test_by_problem_keeps_the_order_of_first_appearance():
    assert by_problem(["b", "a", "b"], [1, 2, 3]) == [[1, 3], [2]]
    with pytest.raises(ValueError, match="longer"):
        by_problem(["b"], [1, 2])


@given(HITS, st.integers(1, 5))
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(correct, k):
    """Counted: every way to take k of a problem's samples."""
    enough = [samples for samples in correct if len(samples) >= k]
    counted = [np.mean([any(draw) for draw in itertools.combinations(samples, k)]) for samples in enough]
    assert pass_at_k(enough, k) == pytest.approx(counted)
    if len(enough) < len(correct):
        with pytest.raises(ValueError, match="not defined"):
            pass_at_k(correct, k)


def test_pass_at_k_is_unbiased():
    """Over draws of n samples its mean is that of k fresh samples, 1 - (1 - p)^k; 1 - (1 - c/n)^k's isn't."""
    rng, n, k, p = np.random.default_rng(0), 6, 3, 0.3
    drawn = (rng.random((20_000, n)) < p).astype(float).tolist()
    expected = 1 - (1 - p) ** k
    assert np.mean(pass_at_k(drawn, k)) == pytest.approx(expected, abs=0.01)
    plug_in = [1 - (1 - np.mean(samples)) ** k for samples in drawn]
    assert abs(np.mean(plug_in) - expected) > 0.02


def test_the_mean_over_tasks_weighs_them_equally_and_resamples_within_each():
    """A task of one problem adds no uncertainty, the other its own, halved."""
    values = [[1.0], [0.0], [1.0], [1.0], [0.0], [1.0], [0.0], [1.0]]
    mean, low, high = mean_over_tasks([values, [[1.0]]])
    alone = interval(values)
    assert mean == (5 / 8 + 1) / 2
    np.testing.assert_allclose([low, high], [(x + 1) / 2 for x in alone], atol=0.03)


def test_the_paired_mean_over_tasks_of_one_task_is_the_paired_difference():
    rng = np.random.default_rng(3)
    ours, theirs = (rng.integers(0, 2, (40, 2)).astype(float).tolist() for _ in range(2))
    assert paired_difference_over_tasks([ours], [theirs]) == paired_difference(ours, theirs)
    mean, low, high = paired_difference_over_tasks([ours, theirs], [theirs, ours])
    assert mean == pytest.approx(0)
    assert low < 0 < high


@pytest.mark.parametrize("samples", [1, 5])
def test_the_interval_covers_the_truth_as_often_as_it_says(samples):
    """Problems of different difficulty, drawn anew each time: 95 % intervals hold the mean difficulty in about 95 %
    of 400 benchmarks (binomial: 0.92 to 0.98), and another draw of the same size in about 83 %, as two independent
    estimates are sqrt(2) further apart than one is from the truth."""
    rng, problems = np.random.default_rng(5), 100
    truth, covered, again = 0.6, 0, 0  # of Beta(3, 2)

    def benchmark() -> list[list[float]]:
        difficulty = rng.beta(3, 2, problems)
        return (rng.random((problems, samples)) < difficulty[:, None]).astype(float).tolist()

    for _ in range(400):
        low, high = interval(benchmark(), draws=500)
        covered += low <= truth <= high
        again += low <= pass_at_1(benchmark()) <= high
    assert 0.92 < covered / 400 < 0.98
    expected = 2 * scipy.stats.norm.cdf(1.96 / 2**0.5) - 1
    assert abs(again / 400 - expected) < 0.06
