"""Scaling and losses against plain loops."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jkv.predictor_training.targets import Target, ranking, squared_error, target_of

LABELS = np.array([0.0, 1e-4, 4.2e-4, 5e-4, 0.01], np.float32)


def test_the_published_scalings():
    llama, qwen = target_of("llama", None, None), target_of("qwen2", None, None)
    np.testing.assert_allclose(llama(LABELS), [0, 1, 4.2, 5, 100], rtol=1e-6)
    np.testing.assert_allclose(qwen(LABELS), [10 * x**0.3 / 0.3 for x in LABELS.tolist()], rtol=1e-6)
    assert target_of("qwen3", None, None) == qwen
    assert target_of("llama", "power", 2.0, exponent=0.5)(np.array([4.0], np.float32)) == pytest.approx(8)
    # 4 belongs to the band, 5 doesn't.
    weights = llama.weights(jnp.asarray([0, 1, 4, 4.2, 4.999, 5, 100], jnp.float32))
    np.testing.assert_array_equal(weights, [1, 1, 5, 5, 5, 1, 1])


def test_squared_error_is_weighted_and_blind_to_padding():
    rule = Target("linear", 1.0)
    predicted = jnp.asarray([[1.0, 2.0, jnp.nan], [0.0, 7.0, 3.0]])
    target = jnp.asarray([[3.0, 4.5, 1.0], [0.5, jnp.inf, 3.0]])
    valid = jnp.asarray([[True, True, False], [True, False, True]])
    assert float(squared_error(predicted, target, valid, rule)) == pytest.approx(4 + 5 * 2.5**2 + 0.25)
    slope = jax.grad(lambda p: squared_error(p, target, valid, rule))(predicted)
    np.testing.assert_allclose(slope, [[-4, -25, 0], [-1, 0, 0]])


def plain_ranking(predicted, target, valid, shifts) -> float:
    total = 0.0
    rows, length = predicted.shape
    for row in range(rows):
        for i in range(length):
            losses = []
            for shift in shifts:
                j = (i - shift) % length
                if valid[row, i] and valid[row, j] and target[row, i] != target[row, j]:
                    above = 1 if target[row, i] > target[row, j] else -1
                    losses.append(math.log1p(math.exp(-above * (predicted[row, i] - predicted[row, j]))))
            total += sum(losses) / max(1, len(losses))
    return total


def test_ranking_is_what_loops_say():
    rng, key = np.random.default_rng(0), jax.random.key(3)
    predicted, target = rng.normal(size=(2, 3, 11)).astype(np.float32)
    target = np.round(target)  # some are equal
    valid = np.arange(11)[None] < np.array([[11], [6], [1]])
    shifts = np.asarray(jax.random.randint(key, (16,), 1, 11)).tolist()
    got = ranking(jnp.asarray(predicted), jnp.asarray(target), jnp.asarray(valid), key)
    assert float(got) == pytest.approx(plain_ranking(predicted, target, valid, shifts), rel=1e-5)


def test_ranking_wants_the_order_and_nothing_else():
    key, valid = jax.random.key(0), jnp.ones((1, 8), jnp.bool_)
    target = jnp.arange(8.0)[None]
    loss = lambda p: float(ranking(p, target, valid, key))
    assert loss(target) < loss(jnp.zeros_like(target)) < loss(-target)
    assert loss(target + 100) == pytest.approx(loss(target), rel=1e-5)
    assert float(ranking(target, jnp.zeros_like(target), valid, key)) == 0
