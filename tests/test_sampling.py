"""Samplers against the exact distribution, computed by sorting in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jkv.engine.sampling import Greedy, TopPTopK, make_sampler

V = 200


def exact(logits: np.ndarray, temperature: float, top_p: float, top_k: int) -> np.ndarray:
    """Temperature, then top-p, then top-k, by their definitions."""
    p = np.exp((logits - logits.max()).astype(np.float64) / temperature)
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    before = np.concatenate([[0.0], np.cumsum(p[order])[:-1]])
    kept = order[before < top_p]
    kept = kept[:top_k] if top_k else kept
    out = np.zeros_like(p)
    out[kept] = p[kept]
    return out / out.sum()


draw = jax.jit(lambda sampler, logits, keys: sampler(logits, keys), static_argnums=0)


def some_logits(seed: int = 0, v: int = V) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 2, v).astype(np.float32)


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"), [(0.6, 0.95, 20), (1.0, 0.5, 0), (1.5, 1.0, 7), (0.8, 1.0, 0), (1.2, 0.9, V)]
)
def test_20000_draws_follow_the_exact_distribution(temperature, top_p, top_k):
    logits = some_logits()
    want = exact(logits, temperature, top_p, top_k)
    draws = 20_000
    keys = jax.random.split(jax.random.key(0), draws)
    sample = jax.jit(TopPTopK(temperature, top_p, top_k))
    rows = 2_000
    batch = jnp.broadcast_to(jnp.asarray(logits), (rows, V))
    got = np.concatenate([np.asarray(sample(batch, keys[i : i + rows])) for i in range(0, draws, rows)])
    counts = np.bincount(got, minlength=V)
    assert counts[want == 0].sum() == 0
    expected = want * draws
    common = expected >= 5
    observed = np.append(counts[common], counts[~common].sum())
    expected = np.append(expected[common], expected[~common].sum())
    observed, expected = observed[expected > 0], expected[expected > 0]
    assert stats.chisquare(observed, expected).pvalue > 1e-3


@pytest.mark.slow
@given(
    seed=st.integers(0, 10_000),
    temperature=st.sampled_from([0.6, 2.0]),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 1.0]),
    top_k=st.sampled_from([0, 1, 7, 30]),
)
@settings(max_examples=60, deadline=None)
def test_the_support_is_exact(seed, temperature, top_p, top_k):
    logits = some_logits(seed, 30)
    want = exact(logits, temperature, top_p, top_k)
    keys = jax.random.split(jax.random.key(seed), 64)
    got = np.asarray(draw(TopPTopK(temperature, top_p, top_k), jnp.broadcast_to(jnp.asarray(logits), (64, 30)), keys))
    # A cut that falls within rounding of top_p may go either way.
    p = np.sort(exact(logits, temperature, 1.0, 0))[::-1]
    edge = np.abs(np.concatenate([[0.0], np.cumsum(p)[:-1]]) - top_p).min() < 1e-5
    assert edge or (want[got] > 0).all()


def test_top_p_comes_before_top_k():
    # Masses .4 .3 .2 .1: top-p .6 leaves the first two; cutting to k = 3 first would renormalise and leave them too,
    # but with top-p .75 the order matters: p-then-k keeps three of the vocabulary's mass, k-then-p (k = 3) two.
    logits = jnp.log(jnp.asarray([[0.4, 0.3, 0.2, 0.1]], jnp.float32))
    keys = jax.random.split(jax.random.key(1), 4000)
    got = np.asarray(TopPTopK(1.0, 0.75, 3)(jnp.broadcast_to(logits, (4000, 4)), keys))
    assert set(got) == {0, 1, 2}


def test_the_most_likely_token_survives_any_cut():
    logits = jnp.asarray([[0.0, 5.0, 1.0]], jnp.float32)
    for sampler in (TopPTopK(1.0, 1e-6, 0), TopPTopK(1.0, 1e-6, 2), TopPTopK(1.0, 1.0, 1), Greedy()):
        assert int(sampler(logits, jax.random.split(jax.random.key(0), 1))[0]) == 1


def test_equal_tokens_at_the_edge_of_top_p_stand_together():
    logits = jnp.zeros((2000, 4), jnp.float32)
    keys = jax.random.split(jax.random.key(2), 2000)
    for top_k in (0, 3):
        got = set(np.asarray(TopPTopK(1.0, 0.3, top_k)(logits, keys)).tolist())
        assert got == set(range(top_k or 4))


@pytest.mark.parametrize(
    "bad", [{"temperature": 0.0}, {"temperature": 1.0, "top_p": 0.0}, {"temperature": 1.0, "top_k": -1}]
)
def test_bad_settings_are_refused(bad):
    with pytest.raises(ValueError, match="must be"):
        TopPTopK(**bad)


def test_temperature_zero_is_greedy():
    assert make_sampler(0.0, 0.95, 20) == Greedy()
    assert make_sampler(0.6, 0.95, 20) == TopPTopK(0.6, 0.95, 20)
