"""decode_attention on TPU: one pass over the occupied blocks of the buffer, which also inserts the new token.

The grid is (row, KV heads, block of slots). Blocks past a row's length are neither fetched nor computed: their grid
steps name the next row's first block, so that it is fetched early. The new token is the first term of the online
softmax, so no block has to be changed before it is used. Of the buffer only the tile around the new token's slot is
written, in place.

An int8 buffer's blocks are fetched as integers and converted in VMEM to the queries' dtype, which is exact. A key's
scale multiplies its score, a value's scale multiplies its weight.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int32

from jkv.ops.buffer import Buffer, Int8KV, like
from jkv.ops.sharding import per_shard
from jkv.ops.tpu import cut_to, from_parts, in_hbm, kernel_buffer, to_parts

BLOCK_BYTES = 256 * 1024  # of keys fetched at a time: enough to hide a grid step's fixed cost, far less than a row
MAX_BLOCK = 1024  # slots at a time: on average a row reads half a block too much
_LANES = 128
_LOWEST = -1e30  # the score of a dead slot: finite, so that no difference of scores is NaN


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
    weights: bool,
    interpret: bool | pltpu.InterpretParams = False,
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
      interpret: whether Pallas' interpreter runs the kernel, which works on CPU.

    Raises:
      NotImplementedError: the buffers' dtype (of int8, the dtype it stands for) is neither bfloat16 nor float32.
    """
    if k.dtype not in (jnp.bfloat16, jnp.float32):
        raise NotImplementedError(f"the TPU kernel reads bfloat16 and float32, not {k.dtype}")
    run = functools.partial(_on_one_device, scale=scale, weights=weights, interpret=interpret)
    slots = "BK" if slot.ndim == 2 else "B"
    out = "BNH", "BKSH", "BKSH", *(("BNS",) if weights else ())
    found = per_shard(run, ("BNH", "BKH", "BKH", "BKSH", "BKSH", slots, "B"), out)(q, k_new, v_new, k, v, slot, length)
    return found if weights else (*found, None)


def _on_one_device(
    q: jax.Array,
    k_new: jax.Array,
    v_new: jax.Array,
    k: Buffer,
    v: Buffer,
    slot: jax.Array,
    length: jax.Array,
    *,
    scale: float,
    weights: bool,
    interpret: bool | pltpu.InterpretParams,
) -> tuple[jax.Array | Int8KV, ...]:
    """The same for the rows and heads of one device: out, k, v, and the weights if asked for."""
    batch, heads, dim = q.shape
    kv_heads, slots = k.shape[1:3]
    group = heads // kv_heads
    int8 = isinstance(k, Int8KV)
    item = 1 if isinstance(k, Int8KV) else k.dtype.itemsize
    tile = min(32 // item, slots)  # slots of one memory tile, the least that can be written
    together = kv_heads if slot.ndim == 1 else 1  # KV heads of one grid step, which must write the same slot
    # A block's scales lie along lanes, so an int8 block is a multiple of the lanes even where it is the only one.
    block = block_slots(slots, together * dim * item, _LANES if int8 else tile)
    blocks = pl.cdiv(slots, block)
    slot = slot if slot.ndim == 2 else slot[:, None]
    length = jnp.clip(length, 0, slots)
    # A slot outside the occupied ones (-1 below) writes nothing: its row writes its first tile back unchanged.
    slot = jnp.where((slot >= 0) & (slot < length[:, None]), slot, -1)
    slot = slot.reshape(-1)  # [B * turns]: prefetched scalars are passed flat
    turns = kv_heads // together  # grid steps for the KV heads of a row: 1 or K

    def fetched(b: jax.Array, i: jax.Array, length: jax.Ref) -> tuple[jax.Array, jax.Array]:
        """Row and number of the block to fetch at step i of row b.

        Past the row's last occupied block it is the first of the next row; in the last row, that last block once more.
        """
        there = jnp.maximum(pl.cdiv(length[b], block), 1)
        following = jnp.minimum(b + 1, batch - 1)
        return jnp.where(i < there, b, following), jnp.where(
            i < there, i, jnp.where(b + 1 < batch, 0, jnp.maximum(pl.cdiv(length[batch - 1], block), 1) - 1)
        )

    def of_block(
        b: jax.Array, h: jax.Array, i: jax.Array, length: jax.Ref, slot: jax.Ref
    ) -> tuple[jax.Array, jax.Array, jax.Array, int]:
        """Index of the block of keys and values to fetch at grid step (b, h, i)."""
        del slot
        row, at = fetched(b, i, length)
        return row, h, at, 0

    one = lambda b, h, i, length, slot: (b, h, 0, 0)
    written = lambda b, h, i, length, slot: (b, h, jnp.maximum(slot[b * turns + h], 0) // tile, 0)
    # Scales have their slots on the last axis.
    lanes = lambda index: lambda *arguments: (*(at := index(*arguments))[:2], 0, at[2])
    of_scales = lambda b, h, i, length, slot: (b, h, jnp.maximum(slot[b * turns + h], 0) // _LANES, 0)
    kv_block: Any = pl.BlockSpec((1, together, block, dim), of_block)
    kv_tile: Any = pl.BlockSpec((1, together, tile, dim), written)
    queries = pl.BlockSpec((1, together, group, dim), one)
    new: Any = pl.BlockSpec((1, together, 1, dim), one)
    if int8:
        kv_block = from_parts(k, kv_block, pl.BlockSpec((1, together, 1, block), lanes(of_block)))
        kv_tile = from_parts(k, kv_tile, pl.BlockSpec((1, together, 1, _LANES), lanes(of_scales)))
        new = from_parts(k, new, pl.BlockSpec((1, together, 1, 1), one))
    out_specs = [queries, kv_tile, kv_tile]
    if weights:
        last = lambda b, h, i, length, slot: (b, h, 0, jnp.minimum(i, jnp.maximum(pl.cdiv(length[b], block), 1) - 1))
        out_specs.append(pl.BlockSpec((1, together, group, block), last))
    k, v = (kernel_buffer(x, blocks * block, interpret=interpret) for x in (k, v))
    out_shape = [
        jax.ShapeDtypeStruct((batch, kv_heads, group, dim), q.dtype),
        in_hbm(k),
        in_hbm(v),
        *([jax.ShapeDtypeStruct((batch, kv_heads, group, slots), jnp.float32)] if weights else []),
    ]
    moved = 2 * batch * kv_heads * slots * dim * item
    parts = 2 if int8 else 1
    found = pl.pallas_call(
        functools.partial(_kernel, scale=scale, block=block, tile=tile),
        out_shape=out_shape,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(batch, turns, blocks),
            in_specs=[queries, new, new, kv_block, kv_block],
            out_specs=out_specs,
            scratch_shapes=[
                pltpu.VMEM((together, group, 1), jnp.float32),
                pltpu.VMEM((together, group, 1), jnp.float32),
                pltpu.VMEM((together, group, dim), jnp.float32),
            ],
        ),
        # Operands are counted by their arrays. Before the buffers come two scalars, the queries, new keys and values.
        input_output_aliases={3 + 2 * parts + i: 1 + i for i in range(2 * parts)},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=4 * batch * heads * slots * dim, bytes_accessed=moved, transcendentals=batch * heads * slots
        ),
        name="decode_attention_tpu",
        interpret=interpret,
    )(
        length,
        slot,
        q.reshape(batch, kv_heads, group, dim),
        _new(k, k_new),
        _new(v, v_new),
        k,
        v,
    )
    out, k, v, *logits = found
    out, k, v = out.reshape(q.shape), cut_to(k, slots), cut_to(v, slots)
    return (out, k, v, _softmax(logits[0], length).reshape(batch, heads, slots)) if weights else (out, k, v)


def _new(buffer: Buffer, new: Float[Array, "B K H"]) -> Any:
    """The new keys or values [B, K, 1, H] as the buffer will hold them.

    Integers are given as float32: a TPU's tile of int8 has 32 rows, of which one token would fill a single one.
    """
    stored = like(buffer, new[:, :, None])
    if not isinstance(stored, Int8KV):
        return stored
    return from_parts(stored, stored.values.astype(jnp.float32), stored.scale)


def block_slots(slots: int, slot_bytes: int, tile: int) -> int:
    """How many slots to fetch at a time: a multiple of the tile, and of the lanes if there is more than one block.

    Args:
      slots: S.
      slot_bytes: bytes of the keys of one slot, in all KV heads of a grid step.
      tile: slots of one memory tile.
    """
    most = min(MAX_BLOCK, max(_LANES, BLOCK_BYTES // slot_bytes // _LANES * _LANES))
    return min(most, pl.cdiv(slots, tile) * tile)


def _softmax(logits: Float[Array, "B K G S"], length: Int32[Array, "B"]) -> Float[Array, "B K G S"]:
    """The weights of the occupied slots, 0 at the others, where the kernel's scores are undefined."""
    live = (jnp.arange(logits.shape[-1], dtype=jnp.int32)[None, :] < length[:, None])[:, None, None, :]
    top = jnp.max(jnp.where(live, logits, jnp.float32(_LOWEST)), axis=-1, keepdims=True)
    weight = jnp.where(live, jnp.exp(logits - top), jnp.float32(0))
    total = jnp.sum(weight, axis=-1, keepdims=True)
    return weight / jnp.where(total > 0, total, jnp.float32(1))


def _kernel(
    # prefetched scalars
    length_ref,  # [B]
    slot_ref,  # [B * turns]: -1 writes nothing
    # inputs
    q_ref,  # [1, k, G, H], k KV heads of one grid step
    k_new_ref,  # [1, k, 1, H]; of int8 also scales [1, k, 1, 1]
    v_new_ref,
    k_ref,  # [1, k, block, H]; scales [1, k, 1, block]
    v_ref,
    # outputs
    out_ref,  # [1, k, G, H]
    k_tile_ref,  # [1, k, tile, H]; scales [1, k, 1, lanes]
    v_tile_ref,
    *rest,  # logits [1, k, G, block] if asked for; scratch: top [k, G, 1], total [k, G, 1], weighted [k, G, H]
    scale: float,
    block: int,
    tile: int,
) -> None:
    """Grid step (b, h, i): attend to block i of row b; if the new token's slot is in it, write the tile around it."""
    *logits_ref, top_ref, total_ref, weighted_ref = rest
    b, h, i = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    length, slot, start = length_ref[b], slot_ref[b * pl.num_programs(1) + h], i * block
    writes = slot >= 0
    k_ref, k_scale_ref = to_parts(k_ref)
    v_ref, v_scale_ref = to_parts(v_ref)
    k_new_ref, k_new_scale_ref = to_parts(k_new_ref)
    v_new_ref, v_new_scale_ref = to_parts(v_new_ref)
    multiplied = k_ref.dtype if k_scale_ref is None else q_ref.dtype
    precision = lax.Precision.HIGHEST if multiplied == jnp.float32 else None
    dot = functools.partial(lax.dot_general, preferred_element_type=jnp.float32, precision=precision)
    # int8 is converted exactly: both float32 and bfloat16 hold its numbers.
    wide = lambda block: block if block.dtype == multiplied else block.astype(jnp.float32).astype(multiplied)
    times = lambda x, scale_ref: x if scale_ref is None else x * scale_ref[0]

    def scores_with_block() -> jax.Array:
        """The queries' scores with the block's keys, [k, G, block]."""
        return times(dot(q_ref[0], wide(k_ref[0]), (((2,), (2,)), ((0,), (0,)))) * scale, k_scale_ref)

    def new_scores() -> jax.Array:
        """The queries' scores with the new key, [k, G, 1]."""
        products = q_ref[0].astype(jnp.float32) * k_new_ref[0].astype(jnp.float32)
        return times(jnp.sum(products, axis=2, keepdims=True) * scale, k_new_scale_ref)

    @pl.when(i == 0)
    def _():
        top_ref[...] = jnp.where(writes, new_scores(), _LOWEST)
        total_ref[...] = jnp.full(total_ref.shape, jnp.where(writes, 1.0, 0.0), jnp.float32)
        value = jnp.where(writes, times(v_new_ref[0].astype(jnp.float32), v_new_scale_ref), 0.0)
        weighted_ref[...] = jnp.broadcast_to(value, weighted_ref.shape)

    def attend(*, some_dead: bool) -> None:
        """Add the block to the online softmax.

        some_dead: whether slots of the block must be masked, being dead or the new token's (which is added already).
        """
        scores = scores_with_block()
        values = wide(v_ref[0])
        lane = start + lax.broadcasted_iota(jnp.int32, scores.shape, 2)
        live = (lane < length) & (lane != slot)
        if some_dead:
            if logits_ref:
                logits_ref[0][0] = jnp.where(lane == slot, new_scores(), scores)
            scores = jnp.where(live, scores, _LOWEST)
            if v_scale_ref is None:
                row = start + lax.broadcasted_iota(jnp.int32, values.shape, 1)
                values = jnp.where((row < length) & (row != slot), values, jnp.zeros_like(values))
        elif logits_ref:
            logits_ref[0][0] = scores
        top = top_ref[...]
        higher = jnp.maximum(top, jnp.max(scores, axis=2, keepdims=True))
        weight = jnp.exp(scores - higher)
        if some_dead:
            weight = jnp.where(live, weight, 0.0)
        shrink = jnp.exp(top - higher)
        top_ref[...] = higher
        total_ref[...] = total_ref[...] * shrink + jnp.sum(weight, axis=2, keepdims=True)
        share = times(weight, v_scale_ref)
        if some_dead and v_scale_ref is not None:  # a dead slot's integers are finite, but its scale may be NaN
            share = jnp.where(live, share, 0.0)
        mixed = dot(share.astype(values.dtype), values, (((2,), (1,)), ((0,), (0,))))
        weighted_ref[...] = weighted_ref[...] * shrink + mixed

    here = (slot >= start) & (slot < start + block)
    whole = (start + block <= length) & ~here
    pl.when(whole)(functools.partial(attend, some_dead=False))
    pl.when((start < length) & ~whole)(functools.partial(attend, some_dead=True))

    @pl.when(here | (~writes & (i == 0)))
    def _():
        inside = jnp.maximum(slot, 0) - start
        first = pl.multiple_of(inside // tile * tile, tile) if tile < block else 0
        first_lane = pl.multiple_of(inside // _LANES * _LANES, _LANES) if block > _LANES else 0
        for tile_ref, block_ref, new_ref, scale_ref, new_scale_ref in (
            (k_tile_ref, k_ref, k_new_ref, k_scale_ref, k_new_scale_ref),
            (v_tile_ref, v_ref, v_new_ref, v_scale_ref, v_new_scale_ref),
        ):
            tile_ref, scale_tile_ref = to_parts(tile_ref)
            row = first + lax.broadcasted_iota(jnp.int32, tile_ref.shape[1:], 1)
            old = block_ref[0, :, pl.ds(first, tile), :].astype(new_ref.dtype)
            kept = jnp.where(writes & (row == inside), jnp.broadcast_to(new_ref[0], old.shape), old)
            tile_ref[0] = kept.astype(tile_ref.dtype)
            if scale_tile_ref is not None and scale_ref is not None:
                lane = first_lane + lax.broadcasted_iota(jnp.int32, scale_tile_ref.shape[1:], 2)
                old = scale_ref[0, :, :, pl.ds(first_lane, _LANES)]
                scale_tile_ref[0] = jnp.where(
                    writes & (lane == inside), jnp.broadcast_to(new_scale_ref[0], old.shape), old
                )

    @pl.when(i == pl.num_programs(2) - 1)
    def _():
        total = total_ref[...]
        out_ref[0] = (weighted_ref[...] / jnp.where(total > 0, total, 1.0)).astype(out_ref.dtype)
