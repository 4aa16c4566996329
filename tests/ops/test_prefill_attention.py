import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jkv.models.attention import CausalAttention
from jkv.ops import dispatch
from jkv.ops.prefill_attention import pallas_tpu, prefill_attention

TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}
IMPLEMENTATIONS = {
    "xla": functools.partial(prefill_attention, implementation="xla"),
    "pallas": functools.partial(pallas_tpu.prefill_attention, interpret=True),
}
reference = jax.jit(functools.partial(prefill_attention, implementation="reference"))


def _case(tokens, group, dim, dtype, rows=1, kv_heads=2):
    rng = np.random.default_rng(tokens + 7 * group)
    draw = lambda heads: jnp.asarray(rng.standard_normal((rows, tokens, heads, dim), np.float32), dtype)
    return draw(kv_heads * group), draw(kv_heads), draw(kv_heads)


def _assert_close(got, expected, tolerance):
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize(
    ("tokens", "group", "dim", "dtype"),
    [
        (1, 4, 128, "float32"), (5, 7, 64, "bfloat16"), (127, 1, 64, "float32"), (128, 4, 64, "bfloat16"),
        (128, 4, 64, "float32"), (130, 7, 128, "float32"), (600, 1, 128, "bfloat16"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_matches_the_reference(implementation, tokens, group, dim, dtype):
    arrays = _case(tokens, group, dim, dtype)
    got = jax.jit(IMPLEMENTATIONS[implementation])(*arrays)
    assert got.dtype == dtype
    _assert_close(got, reference(*arrays), TOLERANCE[dtype])


@pytest.mark.slow
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("group", [1, 4, 7])
@pytest.mark.parametrize("tokens", [31, 200, 513, 1100])
def test_kernel_matches_the_reference_at_every_shape(tokens, group, dim):
    arrays = _case(tokens, group, dim, jnp.float32)
    _assert_close(jax.jit(IMPLEMENTATIONS["pallas"])(*arrays), reference(*arrays), 1e-5)


def test_reference_is_the_definition():
    q, k, v = (np.asarray(x, np.float64) for x in _case(20, 4, 64, "float32", rows=2))
    for b, t, n in ((0, 0, 0), (1, 7, 3), (1, 19, 7)):
        keys, values = k[b, : t + 1, n // 4], v[b, : t + 1, n // 4]
        score = keys @ q[b, t, n] / 8
        weight = np.exp(score - score.max())
        expected = weight / weight.sum() @ values
        got = reference(*_case(20, 4, 64, "float32", rows=2))[b, t, n]
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_no_token_looks_ahead(implementation):
    run = jax.jit(IMPLEMENTATIONS[implementation])
    q, k, v = _case(140, 4, 64, "float32")
    later = (jnp.arange(140) >= 60)[None, :, None, None]
    other = run(*(jnp.where(later, 7.0, x) for x in (q, k, v)))
    np.testing.assert_array_equal(run(q, k, v)[:, :60], other[:, :60])


def test_on_a_cpu_it_is_what_training_uses():
    q, k, v = _case(40, 4, 64, "float32")
    expected, *_ = CausalAttention()(q, k, v, None, q.reshape(1, 40, -1))
    np.testing.assert_array_equal(prefill_attention(q, k, v), expected)


def test_what_the_kernel_cannot_do_is_said_and_auto_falls_back():
    q, k, v = _case(16, 4, 48, "float32")
    with pytest.raises(NotImplementedError, match="head dimension of 64 or 128, not 48"):
        pallas_tpu.prefill_attention(q, k, v)
    with pytest.raises(NotImplementedError, match="not for CPU"):
        prefill_attention(q, k, v, implementation="pallas")
    with dispatch.target("tpu"):
        _assert_close(prefill_attention(q, k, v), reference(q, k, v), 1e-5)


def test_bad_shapes_are_refused():
    q, k, v = _case(16, 4, 64, "float32")
    with pytest.raises(ValueError, match="do not divide"):
        prefill_attention(q[:, :, :7], k, v)
