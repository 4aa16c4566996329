import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jkv.ops import dispatch
from jkv.ops.buffer import Int8KV
from jkv.ops.decode_attention import decode_attention, pallas_tpu, reference, xla, xla_dense
from tests.support.compilation import users_jit
from tests.support.kernels import INTERPRET, assert_no_race, count_blocks

KV_HEADS = 2


@jax.jit
def xla_op(q, k, v, length):
    return xla.decode_attention(q, k, v, length, scale=q.shape[-1] ** -0.5)


def attention_weights(q, k, length):
    return xla.attention_weights(q, k, length, scale=q.shape[-1] ** -0.5)


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


@pytest.mark.parametrize(
    ("group", "dim", "slots"),
    [
        (group, (32, 64, 128)[(i + j) % 3], slots)
        for i, group in enumerate((1, 2, 4, 7))
        for j, slots in enumerate((1, 127, 128, 300, 600))
    ],
)
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
    _assert_close(reference.decode_attention(*arrays, scale=32**-0.5), _dense(*arrays), 1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_weights_are_those_of_the_reference(dtype):
    q, k, _, length = _case(3, 4, 127, 32, dtype)
    got = attention_weights(q, k, length)
    expected = reference.attention_weights(q, k, length, scale=32**-0.5)
    _assert_close(got, expected, 1e-5 if dtype == jnp.float32 else 1e-2)
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
    attend, weigh = users_jit(xla_op), users_jit(attention_weights)
    whole = np.asarray(attend(*arrays))
    weights = np.asarray(weigh(arrays[0], arrays[1], arrays[3]))
    poisoned = _case(32, group, slots, 64, kv_heads=kv_heads, dead=np.nan)
    for batch in (1, 3, 8, 16, 32):
        rows = np.random.default_rng(batch).permutation(32)[:batch]  # other rows, other lengths beside them
        np.testing.assert_array_equal(attend(*(a[rows] for a in arrays)), whole[rows])
        np.testing.assert_array_equal(attend(*(a[rows] for a in poisoned)), whole[rows])
        q, k, _, length = (a[rows] for a in arrays)
        np.testing.assert_array_equal(weigh(q, k, length), weights[rows])


def test_the_buffer_is_not_copied():
    q, k, v, length = _case(8, 2, 256, 64, kv_heads=4)
    compiled = xla_op.lower(q, k, v, length).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < k.nbytes // 2


# The whole operation, every implementation against the reference.

IMPLEMENTATIONS = {
    "xla": functools.partial(decode_attention, implementation="xla"),
    "pallas_tpu": functools.partial(pallas_tpu.decode_attention, interpret=INTERPRET),
}
DTYPES, DIMS, GROUPS, SLOTS = (jnp.float32, jnp.bfloat16), (64, 128), (1, 4, 5, 7), (1, 127, 128, 2500, 5000)
SHAPES = [  # slots, group, dim, dtype
    (slots, group, dim, dtype) for dtype in DTYPES for dim in DIMS for group in GROUPS for slots in SLOTS
]
QUICK = {7, 31, 62}  # each dim and dtype


def _step(slots, group, dim, dtype, *, per_head, seed=0):
    """Four rows: full; one slot; nothing to write, in a row of any length; the first slot of an empty row."""
    rng = np.random.default_rng(seed)
    rows = 4
    q = rng.standard_normal((rows, KV_HEADS * group, dim))
    k_new, v_new = rng.standard_normal((2, rows, KV_HEADS, dim))
    k, v = rng.standard_normal((2, rows, KV_HEADS, slots, dim))
    length = np.array([slots, 1, rng.integers(1, slots + 1), 0])
    dead = np.broadcast_to((np.arange(slots) >= length[:, None])[:, None, :, None], k.shape)
    k[dead] = v[dead] = np.nan
    slot = rng.integers(0, np.maximum(length, 1)[:, None], (rows, KV_HEADS))
    slot[2] = -1
    if not per_head:
        slot = slot[:, 0]
    # What the slot held before must not matter.
    for b, h in np.ndindex(rows, KV_HEADS):
        at = slot[b, h] if per_head else slot[b]
        if at >= 0:
            k[b, h, at] = v[b, h, at] = np.nan
    cast = lambda x: jnp.asarray(x, dtype)
    ints = lambda x: jnp.asarray(x, jnp.int32)
    return cast(q), cast(k_new), cast(v_new), cast(k), cast(v), ints(slot), ints(length)


def _pairs() -> list[tuple]:
    """A quarter of the shapes, in which every pair of sizes occurs."""
    places = itertools.product(enumerate(SLOTS), enumerate(GROUPS))
    return [(s, g, DIMS[(i + j) % 2], DTYPES[(i + j // 2) % 2]) for (i, s), (j, g) in places]


def test_pairs_of_sizes():
    for a, b in itertools.combinations(range(4), 2):
        assert {(shape[a], shape[b]) for shape in _pairs()} == {(shape[a], shape[b]) for shape in SHAPES}


def _cases():
    """A few shapes in every run; in the slow one so many that every pair of sizes occurs."""
    pairs = set(_pairs())
    for (i, shape), name in itertools.product(enumerate(SHAPES), IMPLEMENTATIONS):
        slots, group, dim, dtype = shape
        if i not in QUICK and shape not in pairs:
            continue
        marks = () if i in QUICK else pytest.mark.slow
        yield pytest.param(name, shape, marks=marks, id=f"{name}-S{slots}-G{group}-H{dim}-{dtype.__name__}")


@pytest.mark.parametrize(("implementation", "shape"), list(_cases()))
def test_every_implementation_matches_the_reference(implementation, shape):
    slots, group, dim, dtype = shape
    arrays = _step(slots, group, dim, dtype, per_head=(slots + group) % 2 == 0)
    options = {"scale": dim**-0.5, "weights": group != 5}
    run = IMPLEMENTATIONS[implementation]
    out, k, v, weights = run(*arrays, **options)
    if implementation == "pallas_tpu":
        assert_no_race()
    expected = decode_attention(*arrays, **options, implementation="reference")
    tolerance = 1e-5 if dtype == jnp.float32 else 1e-2
    _assert_close(out, expected.out, tolerance)
    np.testing.assert_array_equal(np.asarray(out[3], np.float32), 0)  # length 0
    for ours, theirs in ((k, expected.k), (v, expected.v)):
        np.testing.assert_array_equal(np.asarray(ours, np.float32), np.asarray(theirs, np.float32))
    if options["weights"]:
        _assert_close(weights, expected.weights, tolerance)
        np.testing.assert_allclose(weights.sum(2)[jnp.asarray([0, 1, 2])], 1, rtol=1e-5)
    else:
        assert weights is None
    again = run(*arrays, **options)
    for ours, theirs in zip(jax.tree.leaves((out, k, v, weights)), jax.tree.leaves(tuple(again)), strict=True):
        np.testing.assert_array_equal(np.asarray(ours, np.float32), np.asarray(theirs, np.float32))


# The int8 buffer: every implementation against the float32 reference of what its integers and scales stand for.


def _rounded(x):
    """NumPy: integers [.., H] and scales [..], of which the product is what is stored of x."""
    x = np.nan_to_num(np.asarray(x, np.float32))
    scale = np.abs(x).max(axis=-1) * np.float32(1 / 127)
    return np.rint(x * (1 / np.where(scale == 0, np.float32(1), scale))[..., None]).astype(np.int8), scale


def _int8_step(slots, group, dim, dtype, *, per_head):
    """As ``_step``, with an int8 buffer whose dead slots and overwritten slots have NaN for a scale; and the float32
    arrays that it stands for once the new token is in."""
    q, k_new, v_new, k, v, slot, length = _step(slots, group, dim, dtype, per_head=per_head)
    at = np.broadcast_to(np.asarray(slot).reshape(4, -1), (4, KV_HEADS))
    buffers, wanted = [], []
    for old, new in ((k, k_new), (v, v_new)):
        dead = np.isnan(np.asarray(old, np.float32)).all(axis=-1)
        (values, scale), (new_values, new_scale) = _rounded(old), _rounded(new)
        stored = Int8KV(jnp.asarray(values), jnp.asarray(np.where(dead, np.nan, scale)[:, :, None]), jnp.dtype(dtype))
        dense = np.where(dead[..., None], np.nan, values * scale[..., None])
        for b, h in np.ndindex(4, KV_HEADS):
            if 0 <= at[b, h] < length[b]:
                dense[b, h, at[b, h]] = new_values[b, h] * new_scale[b, h]
        buffers.append(stored)
        wanted.append(jnp.asarray(dense))
    return (q, k_new, v_new, *buffers, slot, length), (q.astype(jnp.float32), *wanted, length)


INT8_SHAPES = [  # slots, group, dim, dtype
    (127, 4, 64, jnp.float32),
    (300, 7, 128, jnp.bfloat16),
    *(
        pytest.param(*shape, marks=pytest.mark.slow)
        for shape in (
            (1, 1, 64, jnp.float32), (128, 5, 128, jnp.bfloat16), (2500, 4, 128, jnp.float32),
            (5000, 1, 64, jnp.bfloat16), (1100, 2, 32, jnp.float32),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(("slots", "group", "dim", "dtype"), INT8_SHAPES)
@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "reference"])
def test_int8_matches_the_reference_of_what_it_stands_for(implementation, slots, group, dim, dtype):
    arrays, wide = _int8_step(slots, group, dim, dtype, per_head=group % 2 == 1)
    options = {"scale": dim**-0.5, "weights": group != 5}
    run = IMPLEMENTATIONS.get(implementation) or functools.partial(decode_attention, implementation="reference")
    out, k, v, weights = run(*arrays, **options)
    if implementation == "pallas_tpu":
        assert_no_race()
    q, k_wide, v_wide, length = wide
    tolerance = 1e-5 if dtype == jnp.float32 else 1e-2
    assert out.dtype == dtype
    _assert_close(out, reference.decode_attention(q, k_wide, v_wide, length, scale=dim**-0.5), tolerance)
    np.testing.assert_array_equal(np.asarray(out[3], np.float32), 0)  # length 0
    live = np.isfinite(np.asarray(k_wide))
    for ours, stored in ((k, k_wide), (v, v_wide)):
        assert isinstance(ours, Int8KV)
        assert (ours.values.dtype, ours.scale.dtype) == (jnp.int8, jnp.float32)
        np.testing.assert_array_equal(np.asarray(ours.dense(jnp.float32))[live], np.asarray(stored)[live])
    if options["weights"]:
        _assert_close(weights, reference.attention_weights(q, k_wide, length, scale=dim**-0.5), tolerance)


def test_int8_elsewhere_than_on_cpu():
    """The forms of `xla_dense` for GPU and TPU, run here."""
    arrays, _ = _int8_step(127, 4, 64, jnp.float32, per_head=False)
    q, length = arrays[0], arrays[-1]
    _, k, v, _ = decode_attention(*arrays, implementation="reference")
    expected = reference.decode_attention(q, k, v, length, scale=0.125)
    _assert_close(xla_dense.attend(q, k, v, length, scale=0.125)[0], expected, 1e-5)
    text = jax.jit(lambda *a: xla_dense.attend(*a, scale=0.125)[0]).trace(q, k, v, length).lower(
        lowering_platforms=("tpu",)
    ).as_text()  # fmt: skip
    assert text.count("dot_general") == 2


def test_only_occupied_blocks_are_fetched_and_one_tile_is_written():
    slots, dim, group = 5000, 128, 4
    q, k_new, v_new, k, v, _, _ = _step(slots, group, dim, jnp.bfloat16, per_head=False)
    length = jnp.asarray([5000, 700, 1, 2049], jnp.int32)
    slot = jnp.asarray([4999, 3, 0, 2048], jnp.int32)
    k, v = jnp.nan_to_num(k), jnp.nan_to_num(v)
    with count_blocks() as moved:
        pallas_tpu.decode_attention(
            q, k_new, v_new, k, v, slot, length, scale=dim**-0.5, weights=False, interpret=INTERPRET
        )
    block = pallas_tpu.block_slots(slots, KV_HEADS * dim * 2, 16)
    assert block == 512
    occupied = {(b, 0, i, 0) for b, n in enumerate(length) for i in range(-(-int(n) // block))}
    for name in ("k_ref", "v_ref"):
        blocks = moved.of(name)
        assert set(blocks) == occupied
        # The interpreter takes the rows in any order: a row's first block may be fetched ahead of another's turn, too.
        assert len(blocks) <= len(occupied) + len(length)
    for name in ("k_tile_ref", "v_tile_ref"):
        assert sorted(moved.of(name)) == [(b, 0, int(at) // 16, 0) for b, at in enumerate(slot)]


def test_refuses_what_it_cannot_do():
    q, k_new, v_new, k, v, slot, length = _step(5, 2, 32, jnp.float32, per_head=False)
    with pytest.raises(NotImplementedError, match="pallas"):
        decode_attention(q, k_new, v_new, k, v, slot, length, implementation="pallas")
    half = k.astype(jnp.float16)
    with dispatch.target("tpu"), pytest.raises(NotImplementedError, match="float16"):
        decode_attention(q, k_new, v_new, half, half, slot, length, implementation="pallas")
    with pytest.raises(ValueError, match="unknown implementation"):
        decode_attention(q, k_new, v_new, k, v, slot, length, implementation="cuda")
    with pytest.raises(ValueError, match="do not divide"):
        decode_attention(q[:, :3], k_new, v_new, k, v, slot, length)
    with pytest.raises((ValueError, TypeError), match="length"):
        decode_attention(q, k_new, v_new, k, v, slot, length[:1])
    with pytest.raises((ValueError, TypeError), match="slot"):
        decode_attention(q, k_new, v_new, k, v, slot[:1], length)
