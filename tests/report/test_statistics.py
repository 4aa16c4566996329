"""Metrics against closed forms and scipy."""

import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from jkv.report.statistics import by_problem, interval, majority_at_k, pass_at_1

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
