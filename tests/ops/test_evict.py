import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jkv.ops import dispatch
from jkv.ops.buffer import Int8KV
from jkv.ops.evict import compact, pallas_tpu
from tests.support.kernels import INTERPRET, assert_no_race, count_blocks

IMPLEMENTATIONS = {
    "xla": jax.jit(functools.partial(compact, implementation="xla")),
    "pallas_tpu": functools.partial(pallas_tpu.compact, interpret=INTERPRET),
}


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
def test_matches_the_reference_and_a_hand_count(dtype, per_head, slots, kept):
    """One compilation for all sets of rows: which rows evict is no part of a program."""
    k, v, source = _case(dtype, slots=slots, kept=kept, per_head=per_head)
    run = jax.jit(IMPLEMENTATIONS["xla"])
    for evicting in ([], [0], [1, 3], [0, 1, 2, 3, 4]):
        rows = jnp.zeros(5, bool).at[jnp.asarray(evicting, jnp.int32)].set(True)
        got = run(k, v, source, rows)
        for new, old in zip(got, (k, v), strict=True):
            _check_by_hand(new, old, source, evicting)
        if evicting == [1, 3]:  # the reference goes slot by slot, which takes its time
            for new, same in zip(got, compact(k, v, source, rows, implementation="reference"), strict=True):
                np.testing.assert_array_equal(new, same)


def _check_by_hand(new, old, source, evicting):
    """Bit for bit: bfloat16 and float32 as whole numbers."""
    bits = np.uint16 if old.dtype == jnp.bfloat16 else np.uint32
    new, old, source = np.asarray(new).view(bits), np.asarray(old).view(bits), np.asarray(source)
    for b, head in np.ndindex(*old.shape[:2]):
        kept = source[b, head] if source.ndim == 3 else source[b]
        if b in evicting:
            np.testing.assert_array_equal(new[b, head, : len(kept)], old[b, head, kept])
        else:
            np.testing.assert_array_equal(new[b, head], old[b, head])


HARD = np.array([0.0, -0.0, np.inf, -np.inf, 1e-40, 3.3895314e38, 1.0000001], np.float32)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("slots", "kept", "dim", "dtype", "per_head", "evicting"),
    [
        (127, 5, 64, jnp.bfloat16, True, []),
        (300, 180, 128, jnp.bfloat16, False, [0, 1]),
        (300, 299, 64, jnp.float32, True, [1]),
        pytest.param(1, 1, 128, jnp.bfloat16, False, [0, 1], marks=pytest.mark.slow),
        pytest.param(127, 126, 128, jnp.float32, False, [1], marks=pytest.mark.slow),
        pytest.param(128, 128, 64, jnp.float32, True, [0], marks=pytest.mark.slow),
        pytest.param(256, 128, 128, jnp.bfloat16, False, [0, 1], marks=pytest.mark.slow),
        pytest.param(2500, 2372, 128, jnp.bfloat16, False, [1], marks=pytest.mark.slow),
        pytest.param(2500, 2499, 64, jnp.float32, True, [0, 1], marks=pytest.mark.slow),
        pytest.param(5000, 2900, 128, jnp.bfloat16, False, [0], marks=pytest.mark.slow),
        pytest.param(5000, 3200, 64, jnp.float32, True, [0, 1], marks=pytest.mark.slow),
    ],
)
def test_every_bit_arrives(implementation, slots, kept, dim, dtype, per_head, evicting):
    k, v, source = _case(dtype, rows=2, heads=2, slots=slots, dim=dim, kept=kept, per_head=per_head)
    k = k.at[:, :, slots // 2, : len(HARD)].set(jnp.asarray(HARD, dtype))
    if slots > 200:  # a NaN stays where it is sent, and spoils nothing beside it
        k = k.at[:, :, slots // 3].set(jnp.nan)
    rows = jnp.zeros(2, bool).at[jnp.asarray(evicting, jnp.int32)].set(True)
    run = IMPLEMENTATIONS[implementation]
    got = run(k, v, source, rows)
    if implementation == "pallas_tpu":
        assert_no_race()
    for new, old in zip(got, (k, v), strict=True):
        _check_by_hand(new, old, source, evicting)
    for new, again in zip(got, run(k, v, source, rows), strict=True):
        assert np.asarray(new[:, :, :kept]).tobytes() == np.asarray(again[:, :, :kept]).tobytes()


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "reference"])
@pytest.mark.parametrize(
    ("slots", "kept", "dim", "per_head", "evicting"),
    [
        (300, 180, 64, False, [0, 1]),
        pytest.param(127, 5, 64, True, [], marks=pytest.mark.slow),
        pytest.param(300, 299, 32, True, [1], marks=pytest.mark.slow),
        pytest.param(2500, 2372, 128, True, [0, 1], marks=pytest.mark.slow),
    ],
)
def test_every_bit_of_int8_arrives_and_scales_go_along(implementation, slots, kept, dim, per_head, evicting):
    if implementation == "reference":
        slots, kept = min(slots, 11), min(kept, 6)
    rng = np.random.default_rng(0)
    _, _, source = _case(rows=2, heads=2, slots=slots, dim=dim, kept=kept, per_head=per_head)
    buffers = []
    for _ in range(2):
        values = rng.integers(-128, 128, (2, 2, slots, dim), np.int8)
        scale = rng.standard_normal((2, 2, 1, slots), np.float32)
        scale[..., : len(HARD)] = HARD
        scale[..., slots // 2] = np.nan
        buffers.append(Int8KV(jnp.asarray(values), jnp.asarray(scale), jnp.float32))
    rows = jnp.zeros(2, bool).at[jnp.asarray(evicting, jnp.int32)].set(True)
    run = IMPLEMENTATIONS.get(implementation) or functools.partial(compact, implementation="reference")
    got = run(*buffers, source, rows)
    if implementation == "pallas_tpu":
        assert_no_race()
    for new, old in zip(got, buffers, strict=True):
        for now, before in ((new.values, old.values), (new.scale[:, :, 0], old.scale[:, :, 0])):
            now, before = (np.asarray(x).view(np.uint8 if x.ndim == 4 else np.uint32) for x in (now, before))
            for b, head in np.ndindex(2, 2):
                stay = np.asarray(source[b, head] if source.ndim == 3 else source[b])
                if b in evicting:
                    np.testing.assert_array_equal(now[b, head, :kept], before[b, head, stay])
                else:
                    np.testing.assert_array_equal(now[b, head], before[b, head])


def test_only_rows_that_evict_are_moved_and_each_block_once():
    k, v, source = _case(jnp.bfloat16, rows=4, heads=2, slots=640, dim=64, kept=500)
    with count_blocks() as moved:
        pallas_tpu.compact(k, v, source, jnp.asarray([False, True, False, True]), interpret=INTERPRET)
    for name in ("k_ref", "v_ref"):
        assert moved.of(name) == [(b, 0, i, 0) for b in (1, 3) for i in range(5)]
    for name in ("k_tile_ref", "v_tile_ref"):
        assert moved.of(name) == [(b, 0, i, 0) for b in (1, 3) for i in range(4)]


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
    half = k.astype(jnp.float16)
    with dispatch.target("tpu"), pytest.raises(NotImplementedError, match="float16"):
        compact(half, half, source, rows, implementation="pallas")
    with pytest.raises(ValueError, match="unknown implementation"):
        compact(k, v, source, rows, implementation="cuda")
    with pytest.raises((ValueError, TypeError), match="source"):
        compact(k, v, source[:2], rows)
    with pytest.raises((ValueError, TypeError), match="rows"):
        compact(k, v, source, rows[:2])
