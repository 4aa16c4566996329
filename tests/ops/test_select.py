"""select: every implementation gives the slots that a plain Python sort gives, to the last one."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from jkv.ops.select import pallas_tpu, select

INTERPRET = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
BY_NAME = {
    "reference": functools.partial(select, implementation="reference"),
    "xla": functools.partial(select, implementation="xla"),
    "pallas_tpu": functools.partial(pallas_tpu.select, interpret=INTERPRET),
}


@functools.partial(jax.jit, static_argnums=(0, 3))
def run(name: str, scores: jax.Array, positions: jax.Array, retain: int) -> jax.Array:
    return BY_NAME[name](scores, positions, retain)


@functools.partial(jax.jit, static_argnums=2)
def two_sorts(scores: jax.Array, positions: jax.Array, retain: int) -> jax.Array:
    """What stood here before the op did."""
    slot = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 3)
    *_, ranked = jax.lax.sort((scores, positions, slot), dimension=-1, num_keys=2)
    return jnp.sort(ranked[..., scores.shape[-1] - retain :], axis=-1)


def by_sorting(scores: np.ndarray, positions: np.ndarray, retain: int) -> np.ndarray:
    """Plain Python; a float's order is its own (-0.0 equals 0.0)."""
    kept = np.empty((*scores.shape[:-1], retain), np.int32)
    for row in np.ndindex(scores.shape[:-1]):
        ranked = sorted(zip(scores[row].tolist(), positions[row].tolist(), range(scores.shape[-1]), strict=True))
        kept[row] = sorted(slot for _, _, slot in ranked[scores.shape[-1] - retain :])
    return kept


def case(shape: tuple[int, ...], *, distinct: bool) -> tuple[np.ndarray, np.ndarray]:
    """As at an eviction: protected slots at +inf, dead ones at -inf (and all at position 0), slots in no order."""
    rng, slots = np.random.default_rng(shape[-1]), shape[-1]
    scores = rng.standard_normal(shape).astype(np.float32)
    scores = scores if distinct else np.round(scores * 2) / 2
    positions = rng.permuted(np.broadcast_to(np.arange(slots, dtype=np.int32) * 3, shape), axis=-1)
    scores = np.where(positions > 3 * slots - slots // 4, np.float32(np.inf), scores)
    dead = slots - slots // 16
    scores[..., dead:], positions[..., dead:] = -np.inf, 0
    return scores, positions


@pytest.mark.parametrize("distinct", [True, False])
@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1, 1),
        (3, 1, 1, 127),
        (2, 3, 2, 128),
        pytest.param((2, 1, 1, 2500), marks=pytest.mark.slow),
        pytest.param((1, 1, 1, 5000), marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", BY_NAME)
def test_is_what_a_sort_says(name, shape, distinct):
    scores, positions = case(shape, distinct=distinct)
    few = max(1, shape[-1] * 15 // 16 - 3)
    for retain in {1, few, shape[-1]} if shape[-1] < 128 else {few}:
        got = run(name, scores, positions, retain)
        assert got.dtype == jnp.int32
        np.testing.assert_array_equal(got, by_sorting(scores, positions, retain))
        np.testing.assert_array_equal(got, run(name, scores, positions, retain))


ROWS, S = 8, 24
SUBNORMAL, LARGEST = float(np.finfo(np.float32).smallest_subnormal), float(np.finfo(np.float32).max)
SOME = [-math.inf, -LARGEST, -1.0, -SUBNORMAL, -0.0, 0.0, SUBNORMAL, 0.5, LARGEST, math.inf]


@given(
    scores=st.lists(st.sampled_from(SOME) | st.floats(width=32, allow_nan=False), min_size=ROWS * S, max_size=ROWS * S),
    positions=st.lists(st.integers(-2, 5) | st.integers(-(2**31), 2**31 - 1), min_size=ROWS * S, max_size=ROWS * S),
    retain=st.sampled_from([7, 23]),
)
@settings(max_examples=20, deadline=None)
def test_ties_infinities_and_zeros_in_any_order(scores, positions, retain):
    raw = np.array(scores, np.float32).reshape(ROWS, 1, 1, S)
    position = np.array(positions, np.int32).reshape(raw.shape)
    # Subnormal scores are zeros: XLA flushes them when it compares or sorts.
    score = np.where(np.abs(raw) < np.finfo(np.float32).tiny, np.float32(0), raw)
    expected = by_sorting(score, position, retain)
    np.testing.assert_array_equal(two_sorts(raw, position, retain), expected)
    for name in BY_NAME:
        np.testing.assert_array_equal(run(name, raw, position, retain), expected, name)


def test_refuses_what_it_cannot_do():
    scores, positions = (jnp.asarray(x) for x in case((2, 1, 1, 5), distinct=True))
    with pytest.raises(NotImplementedError, match="pallas kernel for TPU"):
        select(scores, positions, 3, implementation="pallas")
    with pytest.raises(ValueError, match="unknown implementation"):
        select(scores, positions, 3, implementation="cuda")
    with pytest.raises((ValueError, TypeError), match="positions"):
        select(scores, positions[..., :4], 3)
    for retain in (0, 6):
        with pytest.raises(ValueError, match=r"outside 1\.\.5"):
            select(scores, positions, retain)
    with pytest.raises(NotImplementedError, match="at most 65536 slots"):
        pallas_tpu.select(jnp.zeros((1, 1, 1, 65537)), jnp.zeros((1, 1, 1, 65537), jnp.int32), 3)
