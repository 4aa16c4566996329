import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jkv.ops.buffer import quantize
from jkv.ops.insert import insert


def _case(dtype=jnp.float32, shape=(5, 2, 7, 32)):
    rng = np.random.default_rng(0)
    make = lambda *shape: jnp.asarray(rng.standard_normal(shape, np.float32), dtype)
    rows, heads, _, dim = shape
    return make(*shape), make(*shape), make(rows, heads, dim), make(rows, heads, dim)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("slots", [1, 7, 300])
def test_matches_the_reference_and_leaves_the_rest(dtype, slots):
    arrays = _case(dtype, (5, 2, slots, 32))
    slot = jnp.asarray([0, slots - 1, slots // 2, slots, -1], jnp.int32)  # the last two rows have nothing to write
    got = jax.jit(lambda *a: insert(*a, implementation="xla"))(*arrays, slot)
    for new, old, token, expected in zip(
        got, arrays[:2], arrays[2:], insert(*arrays, slot, implementation="reference"), strict=True
    ):
        np.testing.assert_array_equal(new, expected)
        for b, at in enumerate(slot[:3]):
            np.testing.assert_array_equal(new[b, :, at], token[b])
        np.testing.assert_array_equal(new[3:], old[3:])


@pytest.mark.parametrize("per_head", [False, True])
def test_int8_is_rounded_once_and_leaves_the_rest(per_head):
    k, v, k_new, v_new = _case(jnp.bfloat16, (5, 2, 7, 32))
    k, v = quantize(k, jnp.bfloat16), quantize(v, jnp.bfloat16)
    slot = jnp.asarray([0, 6, 3, 7, -1], jnp.int32)
    slot = jnp.stack([slot, slot[::-1]], axis=1) if per_head else slot
    got = jax.jit(lambda *a: insert(*a, implementation="xla"))(k, v, k_new, v_new, slot)
    expected = insert(k, v, k_new, v_new, slot, implementation="reference")
    at = np.broadcast_to(np.asarray(slot).reshape(5, -1), (5, 2))
    for new, same, old, token in zip(got, expected, (k, v), (k_new, v_new), strict=True):
        jax.tree.map(np.testing.assert_array_equal, new, same)
        exact = np.asarray(token, np.float32)
        for b, h in np.ndindex(5, 2):
            others = np.arange(7) != at[b, h]
            np.testing.assert_array_equal(new.values[b, h, others], old.values[b, h, others])
            np.testing.assert_array_equal(new.scale[b, h, 0, others], old.scale[b, h, 0, others])
            if 0 <= at[b, h] < 7:
                step = np.abs(exact[b, h]).max() * np.float32(1 / 127)
                assert float(new.scale[b, h, 0, at[b, h]]) == step
                np.testing.assert_array_equal(new.values[b, h, at[b, h]], np.rint(exact[b, h] * (1 / step)))


def test_donated_and_loop_carried_buffers_are_written_in_place():
    k, v, k_new, v_new = _case(shape=(8, 4, 256, 64))
    slot = jnp.zeros(8, jnp.int32)

    def steps(k, v, k_new, v_new, slot):
        body = lambda i, c: insert(c[0], c[1], k_new, v_new, slot + i)
        return jax.lax.fori_loop(0, 9, body, (k, v))

    for function in (insert, steps):
        compiled = jax.jit(function, donate_argnums=(0, 1)).lower(k, v, k_new, v_new, slot).compile()
        copies = [t for t in compiled.as_text().splitlines() if "f32[8,4,256,64]" in t.split("(")[0] and " copy(" in t]
        assert not copies
        assert compiled.memory_analysis().temp_size_in_bytes < k.nbytes // 4


def test_refuses_what_it_cannot_do():
    k, v, k_new, v_new = _case()
    slot = jnp.zeros(5, jnp.int32)
    with pytest.raises(NotImplementedError, match="pallas"):
        insert(k, v, k_new, v_new, slot, implementation="pallas")
    with pytest.raises(ValueError, match="unknown implementation"):
        insert(k, v, k_new, v_new, slot, implementation="cuda")
    with pytest.raises((ValueError, TypeError), match="slot"):
        insert(k, v, k_new, v_new, slot[:3])


def test_each_head_may_write_a_slot_of_its_own():
    rng = np.random.default_rng(3)
    k, v = (jnp.asarray(rng.standard_normal((3, 2, 8, 4), np.float32)) for _ in range(2))
    k_new, v_new = (jnp.asarray(rng.standard_normal((3, 2, 4), np.float32)) for _ in range(2))
    slot = jnp.asarray([[0, 7], [3, 3], [8, 1]], jnp.int32)  # 8 is outside: that head is left alone
    for ours, theirs in zip(
        insert(k, v, k_new, v_new, slot), insert(k, v, k_new, v_new, slot, implementation="reference"), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    got = np.asarray(insert(k, v, k_new, v_new, slot)[0])
    np.testing.assert_array_equal(got[0, 1, 7], k_new[0, 1])
    np.testing.assert_array_equal(got[2, 0], k[2, 0])
