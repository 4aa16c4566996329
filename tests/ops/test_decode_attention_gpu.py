"""The Hopper kernel: its numbers in Pallas' GPU interpreter, its program for CUDA, and on such a GPU the kernel itself.

The interpreter has no transposed tensor core operands, so there (and only there) the two products of a block are
plain ones; copies, barriers, masks and the split over thread blocks are those of the kernel.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jkv.ops.decode_attention import pallas_gpu, reference, xla_dense
from jkv.ops.insert import reference as insert_reference

params = pytest.importorskip("jax._src.pallas.mosaic_gpu.interpret.params", reason="Pallas' GPU interpreter is private")
callbacks = pytest.importorskip("jax._src.pallas.mosaic_gpu.interpret.gpu_callbacks")
interpreter = pytest.importorskip("jax._src.pallas.mosaic_gpu.interpret.interpret_pallas_call")
HOPPER = jax.default_backend() == "gpu" and jax.local_devices()[0].compute_capability == "9.0"
SHAPES = [(4, 2, 1, 1, 64), (4, 2, 4, 127, 128), (1, 2, 5, 128, 64), (2, 2, 7, 300, 128), (1, 2, 9, 300, 64)]
LONG = [(1, 2, 4, 2500, 128), (1, 2, 7, 5000, 64)]
SLOW = [pytest.param(3, 8, 1, 700, 128, marks=pytest.mark.slow)]


def _case(batch, kv_heads, group, slots, dim, dtype=jnp.bfloat16):
    """Row lengths include S and, with several rows, 0 and one within a block; dead slots hold NaN, and one row (of
    length 0 if there is one) has nothing to write."""
    rng = np.random.default_rng(slots + group)
    draw = lambda *shape: rng.standard_normal(shape, np.float32)
    q, k_new, v_new = draw(batch, kv_heads * group, dim), draw(batch, kv_heads, dim), draw(batch, kv_heads, dim)
    k, v = draw(batch, kv_heads, slots, dim), draw(batch, kv_heads, slots, dim)
    length = rng.integers(0, slots + 1, batch)
    length[: min(batch, 3)] = (slots, 0, slots // 3)[:batch]
    slot = np.where(length > 0, rng.integers(0, np.maximum(length, 1)), slots)
    dead = np.broadcast_to((np.arange(slots) >= length[:, None])[:, None, :, None], k.shape)
    k[dead] = v[dead] = np.nan
    arrays = (jnp.asarray(x, dtype) for x in (q, k_new, v_new, k, v))
    return *arrays, jnp.asarray(slot, jnp.int32), jnp.asarray(length, jnp.int32)


def _interpreter(**options):
    return params.InterpretGPUParams(uninitialized_memory="nan", out_of_bounds_reads="uninitialized", **options)


def _assert_close(got, expected, tolerance):
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()


def _assert_is_the_reference(case, found, tolerance=1e-2):
    q, k_new, v_new, k, v, slot, length = case
    k, v = insert_reference.insert(k, v, k_new, v_new, slot)
    out, k_found, v_found, weights = found
    assert out.dtype == q.dtype
    for buffer, expected in ((k_found, k), (v_found, v)):
        np.testing.assert_array_equal(np.asarray(buffer, np.float32), np.asarray(expected, np.float32))
    scale = q.shape[2] ** -0.5
    _assert_close(out, reference.decode_attention(q, k, v, length, scale=scale), tolerance)
    expected = reference.attention_weights(q, k, length, scale=scale)
    _assert_close(weights, expected, 1e-3)
    np.testing.assert_array_equal(np.asarray(weights)[np.asarray(expected) == 0], 0)


@pytest.mark.parametrize(
    ("batch", "kv_heads", "group", "slots", "dim"),
    [*SHAPES[:3], *(pytest.param(*shape, marks=pytest.mark.slow) for shape in (*SHAPES[3:], *LONG)), *SLOW],
)
def test_interpreted_kernel_is_the_reference(batch, kv_heads, group, slots, dim):
    case = _case(batch, kv_heads, group, slots, dim)
    run = functools.partial(
        pallas_gpu.decode_attention, *case, scale=dim**-0.5, interpret=_interpreter(detect_races=True)
    )
    found = run(weights=True)
    _assert_is_the_reference(case, found)
    assert not interpreter.get_races().races_found
    if slots == 300:
        alone = run()
        np.testing.assert_array_equal(alone[0], found[0])
        assert alone[3] is None


@pytest.mark.parametrize("length", [0, 1, 64, 65, 300])
def test_only_occupied_blocks_are_fetched(length, monkeypatch):
    *arrays, slot, _ = _case(1, 2, 4, 400, 64)
    fetched = []
    if newer := getattr(callbacks, "AsyncCopyGmemToSmemTask", None):  # JAX 0.11
        copy, method = newer, "__call__"
    else:
        copy, method = callbacks.DeviceLocalMemoryTransfer, "execute"
    execute = getattr(copy, method)

    def counting(self, token):
        fetched.append(self)
        return execute(self, token)

    monkeypatch.setattr(copy, method, counting)
    lengths = jnp.full((1,), length, jnp.int32)
    jax.block_until_ready(pallas_gpu.decode_attention(*arrays, slot, lengths, scale=0.1, interpret=_interpreter()))
    splits = max(1, -(-(400 + 7) // pallas_gpu.BLOCK) // pallas_gpu.SHORTEST)
    blocks = -(-length // pallas_gpu.BLOCK)  # 400 is a multiple of TILE: every KV head's slots begin at a tile
    assert len(fetched) == 2 * (splits + 2 * blocks)  # a query a thread block; keys and values


@pytest.mark.parametrize("slots", [2500, 5000])
@pytest.mark.parametrize("batch", [20, 64, 128])
@pytest.mark.parametrize(("heads", "kv_heads"), [(32, 8), (28, 4)], ids=["r1-llama-8b", "r1-qwen-7b"])
def test_lowers_for_cuda(heads, kv_heads, batch, slots):
    like = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    buffer, new = like(batch, kv_heads, slots, 128), like(batch, kv_heads, 128)
    row = jax.ShapeDtypeStruct((batch,), jnp.int32)
    step = jax.jit(
        functools.partial(pallas_gpu.decode_attention, scale=128**-0.5, weights=batch == 20), donate_argnums=(3, 4)
    )
    traced = step.trace(like(batch, heads, 128), new, new, buffer, buffer, row, row)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "mosaic_gpu" in text
    assert "decode_attention" in text
    assert text.count("tf.aliasing_output") == 2  # keys and values are updated in place


@pytest.mark.skipif(not HOPPER, reason="needs a Hopper GPU")
@pytest.mark.parametrize(("batch", "kv_heads", "group", "slots", "dim"), [*SHAPES, *LONG])
def test_the_kernel_on_hopper_is_the_reference(batch, kv_heads, group, slots, dim):
    case = _case(batch, kv_heads, group, slots, dim)
    run = jax.jit(functools.partial(pallas_gpu.decode_attention, scale=dim**-0.5, weights=True))
    found = run(*case)
    _assert_is_the_reference(case, found)
    np.testing.assert_array_equal(run(*case)[0], found[0])


@pytest.mark.parametrize(
    ("shape", "dtype", "reason"),
    [
        ((1, 2, 2, 64, 128), jnp.float32, "multiplies bfloat16"),
        ((1, 2, 2, 64, 32), jnp.bfloat16, "neither 64 nor 128"),
        ((1, 1, 65, 64, 64), jnp.bfloat16, "more than 64"),
        ((1, 1, 2, 127, 64), jnp.bfloat16, "no multiple of 8"),
    ],
)
def test_refuses_what_it_cannot_do(shape, dtype, reason):
    with pytest.raises(NotImplementedError, match=reason):
        pallas_gpu.decode_attention(*_case(*shape, dtype), scale=0.1)


@pytest.mark.parametrize(
    ("group", "slots", "dtype"), [(1, 1, jnp.float32), (4, 127, jnp.bfloat16), (7, 300, jnp.float32)]
)
@pytest.mark.parametrize("weigh", [xla_dense._sum, xla_dense._dot], ids=["gpu", "tpu"])
def test_dense_xla_is_the_reference(weigh, group, slots, dtype, monkeypatch):
    monkeypatch.setattr(xla_dense.lax, "platform_dependent", lambda *arrays, **forms: weigh(*arrays))
    q, _, _, k, v, _, length = _case(3, 2, group, slots, 64, dtype)
    out, weights = xla_dense.attend(q, k, v, length, scale=0.125, weights=True)
    tolerance = 1e-5 if dtype == jnp.float32 else 1e-2
    _assert_close(out, reference.decode_attention(q, k, v, length, scale=0.125), tolerance)
    _assert_close(weights, reference.attention_weights(q, k, length, scale=0.125), tolerance)
    assert xla_dense.attend(q, k, v, length, scale=0.125)[1] is None
