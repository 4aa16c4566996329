import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jkv.ops.decode_attention import attention_weights, decode_attention

KV_HEADS = 2
xla_op = jax.jit(lambda q, k, v, length: decode_attention(q, k, v, length, implementation="xla"))


def _case(batch, group, slots, dim, dtype=jnp.float32, kv_heads=KV_HEADS, dead=np.nan):
    """Row lengths include 0 and S; every dead slot holds `dead`."""
    rng = np.random.default_rng(slots + 7 * group)
    q = rng.standard_normal((batch, kv_heads * group, dim), np.float32)
    k, v = rng.standard_normal((2, batch, kv_heads, slots, dim), np.float32)
    length = rng.integers(0, slots + 1, batch)
    length[: min(batch, 2)] = (slots, 0)[:batch]
    empty = np.broadcast_to((np.arange(slots) >= length[:, None])[:, None, :, None], k.shape)
    k[empty] = v[empty] = dead
    return *(jnp.asarray(a, dtype) for a in (q, k, v)), jnp.asarray(length, jnp.int32)


def _dense(q, k, v, length):
    """Float64 NumPy, from the definition."""
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    out = np.zeros_like(q)
    for b, n in np.ndindex(q.shape[:2]):
        live, head = int(length[b]), n // (q.shape[1] // k.shape[1])
        if live:
            score = k[b, head, :live] @ q[b, n] * q.shape[2] ** -0.5
            weight = np.exp(score - score.max())
            out[b, n] = weight / weight.sum() @ v[b, head, :live]
    return out


def _assert_close(got, expected, tolerance):
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("slots", [1, 127, 128, 300, 600])
@pytest.mark.parametrize("dim", [32, 64, 128])
@pytest.mark.parametrize("group", [1, 2, 4, 7])
def test_matches_the_definition(group, dim, slots):
    arrays = _case(3, group, slots, dim)
    got = xla_op(*arrays)
    _assert_close(got, _dense(*arrays), 1e-5)
    np.testing.assert_array_equal(got[1], 0)  # length 0


@pytest.mark.parametrize("slots", [1, 127, 128, 300])
@pytest.mark.parametrize("group", [1, 2, 4, 7])
def test_bfloat16(group, slots):
    arrays = _case(3, group, slots, 64, jnp.bfloat16)
    got = xla_op(*arrays)
    assert got.dtype == jnp.bfloat16
    _assert_close(got, _dense(*arrays), 1e-2)


@pytest.mark.parametrize("slots", [1, 127])
def test_the_reference_matches_the_definition(slots):
    arrays = _case(2, 2, slots, 32)
    _assert_close(decode_attention(*arrays, implementation="reference"), _dense(*arrays), 1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_weights_are_those_of_the_reference(dtype):
    q, k, _, length = _case(3, 4, 127, 32, dtype)
    got = attention_weights(q, k, length, implementation="xla")
    _assert_close(
        got, attention_weights(q, k, length, implementation="reference"), 1e-5 if dtype == jnp.float32 else 1e-2
    )
    np.testing.assert_allclose(got.sum(2)[jnp.asarray([0, 2])], 1, rtol=1e-6)
    np.testing.assert_array_equal(got[1], 0)


@pytest.mark.parametrize(
    ("kv_heads", "group", "slots"),
    [
        pytest.param(1, 1, 127, marks=pytest.mark.slow),
        pytest.param(1, 2, 300, marks=pytest.mark.slow),
        (2, 1, 128),
        pytest.param(4, 2, 256, marks=pytest.mark.slow),
        pytest.param(2, 7, 600, marks=pytest.mark.slow),
    ],
)
def test_a_row_has_the_same_bits_whatever_stands_beside_it(kv_heads, group, slots):
    arrays = _case(32, group, slots, 64, kv_heads=kv_heads, dead=3.0)
    whole = np.asarray(xla_op(*arrays))
    weights = np.asarray(attention_weights(arrays[0], arrays[1], arrays[3]))
    poisoned = _case(32, group, slots, 64, kv_heads=kv_heads, dead=np.nan)
    for batch in (1, 3, 8, 16, 32):
        rows = np.random.default_rng(batch).permutation(32)[:batch]  # other rows, other lengths beside them
        np.testing.assert_array_equal(xla_op(*(a[rows] for a in arrays)), whole[rows])
        np.testing.assert_array_equal(xla_op(*(a[rows] for a in poisoned)), whole[rows])
        q, k, _, length = (a[rows] for a in arrays)
        np.testing.assert_array_equal(attention_weights(q, k, length), weights[rows])


def test_the_buffer_is_not_copied():
    q, k, v, length = _case(8, 2, 256, 64, kv_heads=4)
    compiled = xla_op.lower(q, k, v, length).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < k.nbytes // 2


def test_refuses_what_it_cannot_do():
    q, k, v, length = _case(2, 2, 5, 32)
    with pytest.raises(NotImplementedError, match="pallas"):
        decode_attention(q, k, v, length, implementation="pallas")
    with pytest.raises(ValueError, match="unknown implementation"):
        decode_attention(q, k, v, length, implementation="cuda")
    with pytest.raises(ValueError, match="do not divide"):
        decode_attention(q[:, :3], k, v, length)
    with pytest.raises((ValueError, TypeError), match="length"):
        decode_attention(q, k, v, length[:1])
