import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jkv.ops.evict import compact


def _case(dtype=jnp.float32, rows=5, heads=3, slots=11, dim=32, kept=6, per_head=False):
    rng = np.random.default_rng(0)
    make = lambda: jnp.asarray(rng.standard_normal((rows, heads, slots, dim), np.float32), dtype)
    lead = (rows, heads) if per_head else (rows,)
    choose = lambda: np.sort(rng.permutation(slots)[:kept])
    source = np.stack([choose() for _ in range(int(np.prod(lead)))]).reshape(*lead, kept)
    return make(), make(), jnp.asarray(source, jnp.int32)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize(("slots", "kept"), [(1, 1), (11, 6), (11, 11), (11, 1)])
@pytest.mark.parametrize("evicting", [[], [0], [1, 3], [0, 1, 2, 3, 4]])
def test_matches_the_reference_and_a_hand_count(dtype, per_head, slots, kept, evicting):
    k, v, source = _case(dtype, slots=slots, kept=kept, per_head=per_head)
    rows = jnp.zeros(5, bool).at[jnp.asarray(evicting, jnp.int32)].set(True)
    got = jax.jit(lambda *a: compact(*a, implementation="xla"))(k, v, source, rows)
    expected = compact(k, v, source, rows, implementation="reference")
    for new, same, old in zip(got, expected, (k, v), strict=True):
        np.testing.assert_array_equal(new, same)
        for b in range(5):
            for head in range(3):
                kept_slots = source[b, head] if per_head else source[b]
                front = old[b, head, kept_slots] if b in evicting else old[b, head, :kept]
                np.testing.assert_array_equal(new[b, head, :kept], front)
            np.testing.assert_array_equal(new[b, :, kept:], old[b, :, kept:])


@pytest.mark.parametrize("per_head", [False, True])
def test_donated_and_loop_carried_buffers_are_compacted_in_place(per_head):
    k, v, source = _case(rows=8, heads=4, slots=256, dim=64, kept=224, per_head=per_head)
    rows = jnp.ones(8, bool)

    def steps(k, v, source, rows):
        return jax.lax.fori_loop(0, 9, lambda i, c: compact(*c, source, rows), (k, v))

    for function in (compact, steps):
        compiled = jax.jit(function, donate_argnums=(0, 1)).lower(k, v, source, rows).compile()
        copies = [t for t in compiled.as_text().splitlines() if "f32[8,4,256,64]" in t.split("(")[0] and " copy(" in t]
        assert not copies
        assert compiled.memory_analysis().temp_size_in_bytes < 3 * k.nbytes // 8  # one row of keys, one of values


def test_refuses_what_it_cannot_do():
    k, v, source = _case()
    rows = jnp.ones(5, bool)
    with pytest.raises(NotImplementedError, match="pallas"):
        compact(k, v, source, rows, implementation="pallas")
    with pytest.raises(ValueError, match="unknown implementation"):
        compact(k, v, source, rows, implementation="cuda")
    with pytest.raises((ValueError, TypeError), match="source"):
        compact(k, v, source[:2], rows)
    with pytest.raises((ValueError, TypeError), match="rows"):
        compact(k, v, source, rows[:2])
