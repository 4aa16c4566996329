"""key_similarity: every implementation against the reference, the reference against float64 loops over pairs."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from jkv.ops.key_similarity import key_similarity, pallas_tpu

THRESHOLD, MARGIN = 0.5, 0.02
INTERPRET = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
BY_NAME = {
    "reference": functools.partial(key_similarity, implementation="reference"),
    "xla": functools.partial(key_similarity, implementation="xla"),
    "pallas_tpu": functools.partial(pallas_tpu.key_similarity, interpret=INTERPRET),
}
TOLERANCE = {jnp.float32: 1e-5, jnp.bfloat16: 1e-2}


@functools.partial(jax.jit, static_argnums=0)
def run(name: str, keys: jax.Array, positions: jax.Array, length: jax.Array) -> jax.Array:
    return BY_NAME[name](keys, positions, length, threshold=THRESHOLD)


@functools.cache
def case(
    lengths: tuple[int, ...], heads: int, slots: int, dim: int, dtype, per_head: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Clusters of keys around orthogonal centres, some keys opposite, some alone, one zero; positions in no order.

    All cosines keep MARGIN from the threshold, so that no rounding decides what is similar. Dead slots are NaN.
    """
    rng, rows, centres = np.random.default_rng(slots + dim), len(lengths), 12
    centre = np.linalg.qr(rng.standard_normal((dim, dim)))[0][:centres]
    which = rng.integers(0, centres - 4, (rows, heads, slots))
    for alone in range(centres - 4, centres):
        at = rng.integers(0, max(lengths), (rows, heads))
        np.put_along_axis(which, at[..., None], alone, axis=-1)
    noise = rng.standard_normal((rows, heads, slots, dim))
    keys = centre[which] + 0.3 * noise / np.linalg.norm(noise, axis=-1, keepdims=True)
    keys *= rng.uniform(0.1, 10, (rows, heads, slots, 1)) * rng.choice([1, 1, 1, -1], (rows, heads, slots, 1))
    keys[:, :, slots // 3] *= slots == 1
    dead = np.arange(slots) >= np.array(lengths)[:, None]
    keys = np.where(dead[:, None, :, None], np.nan, keys)
    positions = rng.permuted(np.broadcast_to(5 * np.arange(slots), (rows, heads if per_head else 1, slots)), axis=-1)
    keys = jnp.asarray(keys, dtype)
    for b, n in enumerate(lengths):
        for cosine in cosines(keys[b, :, :n]):
            assert np.abs(cosine - THRESHOLD).min(initial=1) > MARGIN
    return keys, jnp.asarray(positions, jnp.int32), jnp.asarray(lengths, jnp.int32)


def cosines(keys) -> np.ndarray:
    """[K, n, n] in float64, zero on the diagonal."""
    wide = np.asarray(keys, np.float64)
    unit = wide / np.maximum(np.linalg.norm(wide, axis=-1, keepdims=True), 1e-30)
    cosine = unit @ unit.swapaxes(1, 2)
    return cosine * (1 - np.eye(keys.shape[1]))


def by_definition(keys, positions, length) -> np.ndarray:
    """Float64, one pointing key at a time."""
    mean = np.zeros(keys.shape[:3])
    for b, n in enumerate(length.tolist()):
        for head, cosine in enumerate(cosines(keys[b, :, :n])):
            position = np.asarray(positions[b, head % positions.shape[1], :n])
            for pointing in range(n):
                similar = np.flatnonzero(cosine[pointing] > THRESHOLD)
                if similar.size:
                    cosine[pointing, similar[np.argmax(position[similar])]] = 0
            mean[b, head, :n] = cosine.sum(0) / max(n, 1)
    return mean


def assert_close(got, expected, tolerance: float) -> None:
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()


CASES = [  # lengths of the rows, K, S
    ((1, 0), 2, 1),
    ((127, 0, 31), 2, 127),
    ((128, 127), 3, 128),
    ((2500, 700), 1, 2500),
    ((5000,), 1, 5000),
]


def all_of_them():
    """Interpreting a kernel over many blocks takes most of a minute: half of those are left out, the others slow. Of
    the other sizes plain runs see each dim and each dtype once."""
    for name, (lengths, heads, slots), dim, dtype in itertools.product(
        ("xla", "pallas_tpu"), CASES, (64, 128), (jnp.float32, jnp.bfloat16)
    ):
        long = slots >= 2500 if name == "pallas_tpu" else slots == 5000
        once = name == "xla" or (slots == 5000) == (dim == 64)
        if once or not long:
            slow = long or (dim == 64) != (dtype == jnp.float32)
            yield pytest.param(name, lengths, heads, slots, dim, dtype, marks=pytest.mark.slow if slow else ())


@pytest.mark.parametrize(("name", "lengths", "heads", "slots", "dim", "dtype"), list(all_of_them()))
def test_matches_the_reference(name, lengths, heads, slots, dim, dtype):
    arrays = case(lengths, heads, slots, dim, dtype, dim == 64)
    got = run(name, *arrays)
    assert got.dtype == jnp.float32
    assert_close(got, run("reference", *arrays), TOLERANCE[dtype])
    for row, n in zip(got, lengths, strict=True):
        np.testing.assert_array_equal(row[:, n:], 0)
    np.testing.assert_array_equal(got, run(name, *arrays))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("lengths", "heads", "slots"), CASES[:4])
def test_the_reference_matches_the_definition(lengths, heads, slots, dtype):
    arrays = case(lengths, heads, slots, 64, dtype, True)
    assert_close(run("reference", *arrays), by_definition(*arrays), 1e-5)


def test_refuses_what_it_cannot_do():
    keys, positions, length = case((127, 0, 31), 2, 127, 64, jnp.float32, True)
    with pytest.raises(NotImplementedError, match="pallas kernel for TPU"):
        key_similarity(keys, positions, length, threshold=0.5, implementation="pallas")
    with pytest.raises(ValueError, match="unknown implementation"):
        key_similarity(keys, positions, length, threshold=0.5, implementation="cuda")
    with pytest.raises((ValueError, TypeError), match="positions"):
        key_similarity(keys, positions[..., :4], length, threshold=0.5)
    with pytest.raises((ValueError, TypeError), match="length"):
        key_similarity(keys, positions, length[:1], threshold=0.5)
    with pytest.raises(NotImplementedError, match="float16"):
        pallas_tpu.key_similarity(keys.astype(jnp.float16), positions, length, threshold=0.5)
