"""The int8 buffer itself: what is rounded to what, its bytes, and its parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jkv.engine.cache import empty_cache
from jkv.models.config import ModelConfig
from jkv.ops.buffer import Int8KV, by_part, dense, empty, like, quantize


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_each_number_is_at_most_half_a_step_off(dtype):
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 16), np.float32) * 10.0 ** np.arange(-2, 3)[:, None]
    x[0, 0, 0] = 0
    x[0, 0, 1] = [127, 0.5, 1.5, 2.5, -0.5, -1.5, -127, *range(9)]  # halves go to the even neighbour
    given = jnp.asarray(x, dtype)
    got, exact = quantize(given, dtype), np.asarray(given, np.float32)
    assert got.values.dtype == jnp.int8
    assert got.scale.dtype == jnp.float32
    assert got.scale.shape == (2, 3, 1, 5)
    step = np.abs(exact).max(-1) * np.float32(1 / 127)
    np.testing.assert_array_equal(got.scale[:, :, 0], step)
    assert (np.abs(np.asarray(got.dense(jnp.float32)) - exact) <= 0.5001 * step[..., None]).all()
    assert np.abs(np.asarray(got.values, np.int32)).max() == 127
    np.testing.assert_array_equal(got.values[0, 0, 0], 0)
    np.testing.assert_array_equal(got.values[0, 0, 1, :7], [127, 0, 2, 2, 0, -2, -127])
    assert got.dense().dtype == dtype


def test_rounding_again_changes_nothing():
    x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 2, 9, 12), np.float32))
    once = quantize(x, jnp.float32)
    np.testing.assert_array_equal(quantize(once.dense(), jnp.float32).values, once.values)


def test_bytes_are_counted_with_scales():
    config = ModelConfig("llama", 97, 40, 72, 3, 4, 2, 12, 1e4)
    for kv, exact in ((None, 3 * 5 * 2 * 7 * 12 * 2 * 2), ("int8", 3 * 5 * 2 * 7 * (12 + 4) * 2)):
        cache = jax.eval_shape(lambda kv=kv: empty_cache(config, 5, 7, dtype=jnp.bfloat16, kv=kv))
        leaves = jax.tree.leaves([(layer.k, layer.v) for layer in cache.layers])
        assert sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) == exact
        assert config.kv_bytes(5, 7, 2, kv) == exact
        assert empty_cache(config, 5, 7, dtype=jnp.bfloat16, kv=kv).nbytes == exact


def test_parts_have_their_slots_on_axes_of_their_own():
    plain, int8 = empty((2, 3, 5, 4), jnp.float32, None), empty((2, 3, 5, 4), jnp.float32, "int8")
    assert isinstance(int8, Int8KV)
    assert int8.shape == plain.shape
    seen = []
    for buffer in (plain, int8):
        by_part(lambda leaf, *, axis: seen.append((leaf.shape, axis)) or leaf, buffer)
    assert seen == [((2, 3, 5, 4), 2), ((2, 3, 5, 4), 2), ((2, 3, 1, 5), 3)]
    new = jnp.ones((2, 3, 1, 4), jnp.float32)
    assert isinstance(like(int8, new), Int8KV)
    np.testing.assert_allclose(dense(like(int8, new)), new, rtol=1e-6)
    assert like(plain.astype(jnp.bfloat16), new).dtype == jnp.bfloat16


def test_a_row_is_shown_as_numbers():
    config = ModelConfig("llama", 97, 40, 72, 1, 4, 2, 12, 1e4)
    cache = empty_cache(config, 2, 7, dtype=jnp.float32, kv="int8")
    x = jnp.asarray(np.random.default_rng(2).standard_normal((2, 2, 7, 12), np.float32))
    layer = type(cache.layers[0])(quantize(x, jnp.float32), quantize(-x, jnp.float32))
    view = type(cache)((layer,), cache.positions, jnp.asarray([3, 7])).row(0)
    np.testing.assert_allclose(view.k[0], x[0, :, :3], atol=0.02)
    np.testing.assert_array_equal(view.k, -view.v)
