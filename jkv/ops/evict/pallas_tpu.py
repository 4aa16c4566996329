"""compact on TPU: the evicting rows stream through VMEM once, block by block, and leave as full tiles at the front.

Which slot goes where is a matrix of zeros and ones, so the matrix unit moves the rows of a block; it moves their bytes,
each a small whole number, so that every bit arrives and a NaN spoils nothing beside it. In place: a tile is written
when it is full, that is from slots before those still to be read. Rows that do not evict are no part of the grid.
"""

import functools
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Int32

from jkv.ops.buffer import Buffer, Int8KV
from jkv.ops.sharding import per_shard
from jkv.ops.tpu import cut_to, in_hbm, kernel_buffer, parts_of, two_parts

TILE = 128  # slots read and written at a time


def compact(
    k: Buffer,
    v: Buffer,
    source: Int32[Array, "B R"] | Int32[Array, "B K R"],
    rows: Bool[Array, "B"],
    *,
    interpret: Any = False,
) -> tuple[Buffer, Buffer]:
    if k.dtype not in (jnp.bfloat16, jnp.float32):
        raise NotImplementedError(f"the TPU kernel moves bfloat16 and float32, not {k.dtype}")
    run = functools.partial(_on_one_device, interpret=interpret)
    kept = "BR" if source.ndim == 2 else "BKR"
    return per_shard(run, ("BKSH", "BKSH", kept, "B"), ("BKSH", "BKSH"))(k, v, source, rows)


def _on_one_device(k, v, source, rows, *, interpret: Any):
    batch, heads, slots, dim = k.shape
    retain = source.shape[-1]
    together = heads if source.ndim == 2 else 1  # KV heads of one grid step: they keep the same slots
    source = source if source.ndim == 3 else source[:, None]
    # Row numbers, those that evict first: a row's turn is how many such rows come before it. No sort for so few.
    row = jnp.arange(batch, dtype=jnp.int32)
    turn = jnp.cumsum(rows, dtype=jnp.int32) - 1
    evicting = jnp.sum(jnp.where(rows[None, :] & (turn[None, :] == row[:, None]), row[None, :], 0), axis=1)
    # The grid has at least one row; if none evicts, that one's first block is written back as it was.
    some = jnp.sum(rows, dtype=jnp.int32)[None]

    int8 = isinstance(k, Int8KV)
    block = TILE if int8 else min(TILE, slots)  # scales lie along lanes: whole ones
    blocks, tiles = pl.cdiv(slots, block), pl.cdiv(retain, block)
    edges = jnp.arange(blocks + 1, dtype=jnp.int32) * block
    # how many kept slots lie before block c, [B, turns, blocks + 1]
    before = jnp.sum((source[:, :, None, :] < edges[None, None, :, None]).astype(jnp.int32), axis=-1)
    turns = before.shape[1]
    before = before.reshape(-1)  # scalars are stored flat
    padding = ((0, 0), (0, 0), (0, (tiles + 1) * block - retain))
    source = jnp.pad(source, padding, constant_values=-1).reshape(batch, source.shape[1], tiles + 1, block)

    def of_block(i, h, c, some, evicting, before):
        del some, before
        return evicting[i], h, jnp.minimum(c, blocks - 1), 0

    def of_tile(i, h, c, some, evicting, before):
        row = evicting[i]
        filling = before[(row * turns + h) * (blocks + 1) + c] // block
        return row, h, jnp.where(some[0] > 0, jnp.minimum(filling, tiles - 1), 0), 0

    whole = lambda i, h, c, some, evicting, before: (evicting[i], h, 0, 0)
    kv_block: Any = pl.BlockSpec((1, together, block, dim), of_block)
    kv_tile: Any = pl.BlockSpec((1, together, block, dim), of_tile)
    scratch = [pltpu.VMEM((2, together, 2 * block, dim), jnp.int32)]
    if int8:
        lanes = lambda index: lambda *arguments: (*(at := index(*arguments))[:2], 0, at[2])  # slots on the last axis
        kv_block = parts_of(k, kv_block, pl.BlockSpec((1, together, 1, block), lanes(of_block)))
        kv_tile = parts_of(k, kv_tile, pl.BlockSpec((1, together, 1, block), lanes(of_tile)))
        scratch.append(pltpu.VMEM((2, together, 1, 2 * block), jnp.int32))
    parts = 2 if int8 else 1
    k, v = (kernel_buffer(x, blocks * block, interpret=interpret) for x in (k, v))
    k, v = pl.pallas_call(
        functools.partial(_kernel, block=block, blocks=blocks, tiles=tiles, slots=slots),
        out_shape=[in_hbm(k), in_hbm(v)],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(jnp.maximum(some[0], 1), turns, blocks + 1),
            in_specs=[pl.BlockSpec((1, 1, tiles + 1, block), whole), kv_block, kv_block],
            out_specs=[kv_tile, kv_tile],
            scratch_shapes=scratch,
        ),
        input_output_aliases={4 + i: i for i in range(2 * parts)},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary", "arbitrary", "arbitrary")),
        name="compact_tpu",
        interpret=interpret,
    )(some, evicting, before, source, k, v)
    return cut_to(k, slots), cut_to(v, slots)


def _kernel(
    # prefetched scalars
    some_ref,  # [1]: rows that evict
    evicting_ref,  # [B]
    before_ref,  # [B * heads of the grid * (blocks + 1)]
    # inputs
    source_ref,  # [1, 1, tiles + 1, block]: -1 behind the last kept slot
    k_ref,  # [1, k, block, H]; of int8 also scales [1, k, 1, block]
    v_ref,
    # outputs
    k_tile_ref,  # as the inputs
    v_tile_ref,
    # scratch
    bits_ref,  # [2 (k and v), k, 2 blocks, H]: the tile being filled, and the next
    scale_bits_ref=None,  # [2, k, 1, 2 blocks]
    *,
    block: int,
    blocks: int,
    tiles: int,
    slots: int,
):
    i, h, c = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    row = evicting_ref[i]
    before = lambda c: before_ref[(row * pl.num_programs(1) + h) * (blocks + 1) + c]
    tile = before(c) // block

    @pl.when(c == 0)
    def _():
        bits_ref[...] = jnp.zeros_like(bits_ref)
        if scale_bits_ref is not None:
            scale_bits_ref[...] = jnp.zeros_like(scale_bits_ref)

    def destinations():
        """goes[s, r]: slot s of this block is what place r of the two tiles is to hold"""
        at = [source_ref[0, 0, pl.ds(jnp.minimum(tile + n, tiles), 1), :] for n in (0, 1)]
        wanted = jnp.concatenate([jnp.broadcast_to(x, (block, block)) for x in at], axis=1)
        slot = c * block + lax.broadcasted_iota(jnp.int32, wanted.shape, 0)
        return jnp.where(wanted == slot, jnp.float32(1), jnp.float32(0)).astype(jnp.bfloat16)

    def gather(block_ref, goes):
        """The block's kept slots at their places in the two tiles, as bits (of int8 as numbers): [k, 2 blocks, H]."""
        if block_ref.dtype == jnp.int8:  # bfloat16 holds each number exactly
            numbers = block_ref[0].astype(jnp.float32).astype(jnp.bfloat16)
            return jnp.stack([move(goes, x, 0) for x in numbers]).astype(jnp.int32)
        total = jnp.zeros(bits_ref.shape[1:], jnp.int32)
        wide = block_ref[0].astype(jnp.float32)
        inside = c * block + lax.broadcasted_iota(jnp.int32, wide.shape, 1) < slots
        bits = lax.bitcast_convert_type(jnp.where(inside, wide, 0.0), jnp.int32)
        for shift in (0, 8, 16, 24) if block_ref.dtype == jnp.float32 else (16, 24):
            moved = jnp.stack([move(goes, x, 0) for x in byte_of(bits, shift)])
            total |= lax.shift_left(moved.astype(jnp.int32), jnp.int32(shift))
        return total

    def gather_scales(scale_ref, goes):
        """Of the scales, as bits: [k, 1, 2 blocks]."""
        assert scale_bits_ref is not None
        total = jnp.zeros(scale_bits_ref.shape[1:], jnp.int32)
        bits = lax.bitcast_convert_type(scale_ref[0], jnp.int32)
        for shift in (0, 8, 16, 24):
            moved = jnp.stack([move(x, goes, 1) for x in byte_of(bits, shift)])
            total |= lax.shift_left(moved.astype(jnp.int32), jnp.int32(shift))
        return total

    byte_of = lambda bits, shift: (
        (lax.shift_right_logical(bits, jnp.int32(shift)) & 0xFF).astype(jnp.float32).astype(jnp.bfloat16)
    )
    move = lambda a, b, axis: lax.dot_general(a, b, (((axis,), (0,)), ((), ())), preferred_element_type=jnp.float32)
    buffers = [(*two_parts(tile_ref), *two_parts(ref)) for tile_ref, ref in ((k_tile_ref, k_ref), (v_tile_ref, v_ref))]

    @pl.when(c < blocks)
    def _():
        goes = destinations()
        for n, (_, _, ref, scale_ref) in enumerate(buffers):
            bits_ref[n] |= gather(ref, goes)
            if scale_ref is not None and scale_bits_ref is not None:
                scale_bits_ref[n] |= gather_scales(scale_ref, goes)

    for n, (tile_ref, scale_tile_ref, ref, scale_ref) in enumerate(buffers):

        @pl.when(some_ref[0] > 0)
        def _(n=n, tile_ref=tile_ref, scale_tile_ref=scale_tile_ref):
            whole = bits_ref[n, :, :block]
            whole = whole if tile_ref.dtype == jnp.int8 else lax.bitcast_convert_type(whole, jnp.float32)
            tile_ref[0] = whole.astype(tile_ref.dtype)
            if scale_tile_ref is not None and scale_bits_ref is not None:
                scale_tile_ref[0] = lax.bitcast_convert_type(scale_bits_ref[n, :, :, :block], jnp.float32)

        @pl.when((some_ref[0] == 0) & (c == 0))
        def _(ref=ref, tile_ref=tile_ref, scale_ref=scale_ref, scale_tile_ref=scale_tile_ref):
            tile_ref[...] = ref[...]
            if scale_tile_ref is not None:
                scale_tile_ref[...] = scale_ref[...]

    # Full, unless it is the last one, which is written again as it is by the steps that follow.
    full = before(jnp.minimum(c + 1, blocks)) // block > tile

    @pl.when(full & (tile + 1 < tiles))
    def _():
        bits_ref[:, :, :block] = bits_ref[:, :, block:]
        bits_ref[:, :, block:] = jnp.zeros_like(bits_ref[:, :, block:])
        if scale_bits_ref is not None:
            scale_bits_ref[..., :block] = scale_bits_ref[..., block:]
            scale_bits_ref[..., block:] = jnp.zeros_like(scale_bits_ref[..., block:])
