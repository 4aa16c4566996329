"""decode_attention for Hopper GPUs: a Pallas kernel (Mosaic GPU) over the occupied slots, split among thread blocks.

The occupied slots of one row and KV head are cut into blocks of BLOCK slots, and these into shares, one for each thread
block. Bulk copies bring keys and values to shared memory, STAGES blocks ahead; the tensor cores multiply in bfloat16
and add in float32. Blocks past a row's length are neither read nor computed. Each share is an online softmax of its
own. XLA does the rest: before the kernel it inserts the new token by a scatter in place, and afterwards it combines the
shares.

A bulk copy into the tensor cores' layout must start at a multiple of TILE rows. So the buffer is treated as one list of
B*K*S rows, and reading begins up to TILE - 1 rows before a KV head's first slot. Those rows belong to another KV head.
Like dead slots at the end, they are read, but their scores are masked and their values zeroed before they are weighted.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int32

from jkv.ops.buffer import Buffer, Int8KV
from jkv.ops.insert import xla as insert_xla

BLOCK = 64  # slots at a time
STAGES = 2  # blocks of keys, and of values, in flight or in use; with 2, two thread blocks fit one multiprocessor
TILE = 8  # rows of a tile of shared memory; query heads are padded to a multiple
ROWS = 64  # rows of the left operand of a tensor core instruction
THREAD_BLOCKS = 264  # that run at once: two on each of the 132 multiprocessors of an H100 or H200
SHORTEST = 4  # blocks: the least of a share
EDGE = 3  # the time that a share takes to begin and end, in blocks
_LOWEST = -1e30  # the score of a masked slot: finite, so that no difference of scores is NaN
_Ref = Any  # a reference to GPU memory: `jax.Ref`, or a view of one, whose class isn't public


def decode_attention(
    q: Float[Array, "B N H"],
    k_new: Float[Array, "B K H"],
    v_new: Float[Array, "B K H"],
    k: Buffer,
    v: Buffer,
    slot: Int32[Array, "B"] | Int32[Array, "B K"],
    length: Int32[Array, "B"],
    *,
    scale: float,
    weights: bool = False,
    interpret: object = None,
) -> tuple[Float[Array, "B N H"], Buffer, Buffer, Float[Array, "B N S"] | None]:
    """See `jkv.ops.decode_attention.api`.

    Args:
      q: one query per row and query head.
      k_new: one key per row and KV head.
      v_new: one value per row and KV head.
      k: the buffer of keys.
      v: the buffer of values.
      slot: where the new token goes.
      length: occupied slots of each row.
      scale: what scores are multiplied by.
      weights: whether to return the softmax weights, too.
      interpret: parameters of Pallas' GPU interpreter, which works on CPU; None for a GPU. (Their class isn't public.)

    Raises:
      NotImplementedError: the GPU isn't a Hopper; the buffers aren't bfloat16; H is neither 64 nor 128; a KV head has
        more than ROWS query heads; or B * K * S is no multiple of TILE.
    """
    batch, heads, dim = q.shape
    kv_heads, slots = k.shape[1:3]
    if isinstance(k, Int8KV) or isinstance(v, Int8KV):
        raise NotImplementedError("the Hopper kernel multiplies bfloat16, not int8")
    _check(q, k, interpret)
    k, v = insert_xla.insert(k, v, k_new.astype(k.dtype), v_new.astype(v.dtype), slot)
    assert not isinstance(k, Int8KV)
    assert not isinstance(v, Int8KV)
    group = heads // kv_heads
    padded = -(-group // TILE) * TILE
    query = q.astype(k.dtype).reshape(batch, kv_heads, group, dim)
    query = jnp.pad(query, ((0, 0), (0, 0), (0, padded - group), (0, 0)))
    length = jnp.clip(length, 0, slots)
    # With log2(e) in the scale, weights are powers of two: exp2 of a score.
    share = _shares(query, k, v, length, scale=scale * math.log2(math.e), weights=weights, interpret=interpret)
    weighted, top, total, score = share
    highest = jnp.max(top, axis=2, keepdims=True)
    shrink = jnp.exp2(top - highest)
    total = jnp.sum(total * shrink, axis=2)
    total = jnp.where(total > 0, total, jnp.float32(1))
    out = jnp.sum(weighted * shrink[..., None], axis=2) / total[..., None]
    out = out[:, :, :group].reshape(q.shape).astype(q.dtype)
    if score is None:
        return out, k, v, None
    lead = _lead(jnp.arange(batch * kv_heads, dtype=jnp.int32).reshape(batch, kv_heads), slots)
    cut = jax.vmap(jax.vmap(lambda row, at: lax.dynamic_slice_in_dim(row, at, slots, axis=1)))
    score = cut(score, lead)[:, :, :group]
    weight = jnp.exp2(score - highest[:, :, 0, :group, None]) / total[:, :, :group, None]
    live = jnp.arange(slots, dtype=jnp.int32)[None, :] < length[:, None]
    return out, k, v, jnp.where(live[:, None, None], weight, jnp.float32(0)).reshape(batch, heads, slots)


def _check(q: jax.Array, k: jax.Array, interpret: object) -> None:
    """Raise NotImplementedError if the kernel can't run."""
    batch, kv_heads, slots, dim = k.shape
    if interpret is None and jax.default_backend() == "gpu":
        capability = str(jax.local_devices()[0].compute_capability)
        if not capability.startswith("9."):
            raise NotImplementedError(f"the kernel needs a Hopper GPU (compute capability 9), not one of {capability}")
    if k.dtype != jnp.bfloat16:
        raise NotImplementedError(f"the Hopper kernel multiplies bfloat16, not {k.dtype}")
    if dim not in (64, 128):
        raise NotImplementedError(f"head dimension {dim} is neither 64 nor 128")
    if q.shape[1] > ROWS * kv_heads:
        raise NotImplementedError(f"{q.shape[1] // kv_heads} query heads per KV head are more than {ROWS}")
    if batch * kv_heads * slots % TILE:
        raise NotImplementedError(f"{batch} rows x {kv_heads} KV heads x {slots} slots are no multiple of {TILE}")


def _lead(index: jax.Array, slots: int) -> jax.Array:
    """How many rows before its first slot a KV head is read from. index: b * K + head."""
    return lax.rem(index * jnp.int32(slots), jnp.int32(TILE))


def _splits(heads: int, blocks: int) -> int:
    """Into how many shares the blocks of each KV head are split, so that all of them are done soonest.

    THREAD_BLOCKS shares run at once, so one share more than fits can take as long as another round of them.

    Args:
      heads: KV heads in all rows together, B * K.
      blocks: blocks of each.
    """
    rounds = lambda splits: pl.cdiv(heads * splits, THREAD_BLOCKS)
    return min(range(1, max(1, blocks // SHORTEST) + 1), key=lambda n: rounds(n) * (pl.cdiv(blocks, n) + EDGE))


def _shares(
    query: jax.Array,
    k: jax.Array,
    v: jax.Array,
    length: jax.Array,
    *,
    scale: float,
    weights: bool,
    interpret: object,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """Run the kernel: an online softmax over each share. Below, g is G padded to a multiple of TILE.

    Returns:
      The weighted sum of values [B, K, splits, g, H], the highest score [B, K, splits, g], and the sum of weights
      [B, K, splits, g] of each share, all float32. Then, if asked for, the scores of all slots [B, K, g, whole blocks],
      undefined at dead ones; else None.
    """
    batch, kv_heads, slots, dim = k.shape
    padded = query.shape[2]
    most = pl.cdiv(slots + TILE - 1, BLOCK)
    splits = _splits(batch * kv_heads, most)
    tiles = (plgpu.TilingTransform((TILE, 64)), plgpu.SwizzleTransform(128))
    float32 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    out_type = [float32(batch, kv_heads, splits, padded, dim), *[float32(batch, kv_heads, splits, padded)] * 2]
    if weights:
        out_type.append(float32(batch, kv_heads, padded, most * BLOCK))
    interpreter: dict[str, Any] = {} if interpret is None else {"interpret": interpret}
    kernel = plgpu.kernel(
        functools.partial(_attend, slots=slots, splits=splits, scale=scale, interpret=interpret),
        out_type=tuple(out_type),
        grid=(splits, kv_heads, batch),
        grid_names=("split", "head", "row"),
        kernel_name="decode_attention",
        scratch_types={
            "q_tile": plgpu.SMEM((ROWS, dim), k.dtype, transforms=tiles),
            "k_tile": plgpu.SMEM((STAGES, BLOCK, dim), k.dtype, transforms=tiles),
            "v_tile": plgpu.SMEM((STAGES, BLOCK, dim), k.dtype, transforms=tiles),
            "q_here": plgpu.Barrier(),
            "k_here": plgpu.Barrier(num_barriers=STAGES),
            "v_here": plgpu.Barrier(num_barriers=STAGES),
        },
        compiler_params=plgpu.CompilerParams(approx_math=True),
        **interpreter,
    )
    # The buffers become one list of rows, which moves no bytes.
    rows = lambda x: x.reshape(batch * kv_heads * slots, dim)
    weighted, top, total, *score = kernel(query, rows(k), rows(v), length)
    return weighted, top, total, score[0] if score else None


def _attend(
    q_ref,  # [B, K, g, H]
    k_ref,  # [B*K*S, H]
    v_ref,
    length_ref,  # [B]
    *refs,  # the outputs of `_shares`
    slots: int,
    splits: int,
    scale: float,
    interpret: object,
    q_tile,  # [ROWS, H]: rows past g are undefined, which is harmless: no row of a product depends on another
    k_tile,  # [STAGES, BLOCK, H]
    v_tile,
    q_here,  # barriers: the copy to this tile has arrived
    k_here,
    v_here,
) -> None:
    """One thread block: share `split` of the occupied blocks of KV head `head` in row `row`."""
    weighted_ref, top_ref, total_ref, *score_ref = refs
    split, head, row = (lax.axis_index(name) for name in ("split", "head", "row"))
    lay_out = plgpu.layout_cast if interpret is None else lambda x, layout: x  # the interpreter has no layouts
    padded, dim = q_ref.shape[2:]
    length = length_ref[row]
    index = row * q_ref.shape[1] + head
    lead = _lead(index, slots)
    origin = index * slots - lead
    blocks = jnp.where(length > 0, lax.div(lead + length + (BLOCK - 1), jnp.int32(BLOCK)), 0)
    each = lax.div(blocks + (splits - 1), jnp.int32(splits))
    first = jnp.minimum(split * each, blocks)
    count = jnp.minimum(each, blocks - first)

    def fetch(ref: _Ref, tile: _Ref, here: _Ref, i: jax.Array) -> None:
        """Start the copy of the share's block i into its stage's tile, if the share has so many."""

        @pl.when(i < count)
        def _():
            stage = lax.rem(i, jnp.int32(STAGES))
            start = pl.multiple_of(origin + (first + i) * BLOCK, TILE)
            plgpu.copy_gmem_to_smem(ref.at[pl.ds(start, BLOCK)], tile.at[stage], here.at[stage])

    plgpu.copy_gmem_to_smem(q_ref.at[row, head], q_tile.at[pl.ds(0, padded)], q_here)
    for i in range(STAGES):
        fetch(k_ref, k_tile, k_here, jnp.int32(i))
        fetch(v_ref, v_tile, v_here, jnp.int32(i))
    plgpu.barrier_wait(q_here)

    def live(i: jax.Array, shape: tuple[int, ...], axis: int) -> jax.Array:
        """Which slots of block i are occupied ones of this KV head. axis: that of the slots, in an array of `shape`."""
        at = lay_out(lax.broadcasted_iota(jnp.int32, shape, axis), plgpu.Layout.WGMMA) + (first + i) * BLOCK
        return (at >= lead) & (at < lead + length)

    def block(i: jax.Array, state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Add block i. state: each query's highest score so far, its sum of weights, its weighted sum of values."""
        top, total, weighted = state
        stage = lax.rem(i, jnp.int32(STAGES))
        plgpu.barrier_wait(k_here.at[stage])
        score = _multiply(q_tile, k_tile.at[stage], transposed=True, interpret=interpret) * scale
        fetch(k_ref, k_tile, k_here, i + STAGES)
        if score_ref:
            _put(score, score_ref[0].at[row, head, :, pl.ds((first + i) * BLOCK, BLOCK)])
        here = live(i, (ROWS, BLOCK), 1)
        score = jnp.where(here, score, _LOWEST)
        higher = jnp.maximum(top, jnp.max(score, axis=1))
        shrink = jnp.exp2(top - higher)
        weight = jnp.where(here, jnp.exp2(score - lax.broadcast_in_dim(higher, score.shape, [0])), 0.0)
        total = total * shrink + jnp.sum(weight, axis=1)
        plgpu.barrier_wait(v_here.at[stage])
        start = (first + i) * BLOCK

        @pl.when((start < lead) | (start + BLOCK > lead + length))
        def _():  # values that don't count may be NaN, and 0 times NaN is NaN
            value = v_tile[stage]
            v_tile[stage] = jnp.where(live(i, value.shape, 0), value, jnp.zeros_like(value))
            plgpu.commit_smem()

        weight = weight.astype(v_tile.dtype)
        weighted = weighted * lax.broadcast_in_dim(shrink, weighted.shape, [0])
        weighted += _multiply(weight, v_tile.at[stage], transposed=False, interpret=interpret)
        fetch(v_ref, v_tile, v_here, i + STAGES)
        return higher, total, weighted

    per_row = lambda value: lay_out(jnp.full((ROWS,), value, jnp.float32), plgpu.Layout.WGMMA.reduce(1))
    nothing = lay_out(jnp.zeros((ROWS, dim), jnp.float32), plgpu.Layout.WGMMA)
    start = (per_row(_LOWEST), per_row(0.0), nothing)
    top, total, weighted = lax.fori_loop(jnp.int32(0), count, block, start)
    _put(weighted, weighted_ref.at[row, head, split])
    _put(top, top_ref.at[row, head, split])
    _put(total, total_ref.at[row, head, split])


def _put(value: jax.Array, ref: _Ref) -> None:
    """Write the first rows of `value` through shared memory. ref: a view (`.at`) of an output, with as many rows."""

    def scoped(tile: _Ref) -> None:
        """tile: shared memory in the shape of `value`."""
        tile[...] = value
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(tile.at[pl.ds(0, ref.shape[0])], ref)
        plgpu.wait_smem_to_gmem(0)

    pl.run_scoped(scoped, plgpu.SMEM(value.shape, value.dtype))


def _multiply(a: jax.Array | _Ref, b: _Ref, *, transposed: bool, interpret: object) -> jax.Array:
    """a @ b, or a @ b.T, by the tensor cores. a: in shared memory or in registers; b: a view of shared memory."""
    if interpret is not None:  # the interpreter supports neither transposed operands nor operands in registers
        left, right = (x[...].astype(jnp.float32) for x in (a, b))
        plgpu.commit_smem()  # orders these plain reads before the next copy; tensor cores' reads need no such order
        return left @ (right.T if transposed else right)
    b = b.T if transposed else b

    def product(total: _Ref) -> jax.Array:
        """total: the tensor cores' accumulator, zero at first."""
        plgpu.wgmma(total, a, b)
        return total[...]

    rows, columns = a.shape[0], b.shape[1]
    return pl.run_scoped(product, plgpu.WGMMAAccumulatorRef((rows, columns), jnp.float32))  # pyright: ignore[reportArgumentType]
