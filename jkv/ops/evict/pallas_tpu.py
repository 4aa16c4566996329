"""compact on TPU: each row that evicts is read once, block by block, and written as full tiles at its front.

Which slot goes where is a matrix of zeros and ones, and the matrix unit moves slots by a product with it. What is
multiplied are the bytes of keys and values, as numbers 0 to 255: they are exact in bfloat16, so every bit arrives, and
a NaN can't spread to other slots. The buffer can be updated in place, because a tile is written only when it is full,
and then the slots that it replaces have all been read. Rows that don't evict are not in the grid.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Int32

from jkv.ops.buffer import Buffer, Int8KV, Stored
from jkv.ops.sharding import per_shard
from jkv.ops.tpu import cut_to, from_parts, in_hbm, kernel_buffer, to_parts

TILE = 128  # slots read and written at a time


def compact(
    k: Buffer,
    v: Buffer,
    source: Int32[Array, "B R"] | Int32[Array, "B K R"],
    rows: Bool[Array, "B"],
    *,
    interpret: bool | pltpu.InterpretParams = False,
) -> tuple[Buffer, Buffer]:
    """See `jkv.ops.evict.api`.

    Args:
      k: the buffer of keys.
      v: the buffer of values.
      source: the slots that stay.
      rows: which rows evict.
      interpret: whether Pallas' interpreter runs the kernel, which works on CPU.

    Raises:
      NotImplementedError: the buffers' dtype (of int8, the dtype it stands for) is neither bfloat16 nor float32.
    """
    if k.dtype not in (jnp.bfloat16, jnp.float32):
        raise NotImplementedError(f"the TPU kernel moves bfloat16 and float32, not {k.dtype}")
    run = functools.partial(_on_one_device, interpret=interpret)
    kept = "BR" if source.ndim == 2 else "BKR"
    return per_shard(run, ("BKSH", "BKSH", kept, "B"), ("BKSH", "BKSH"))(k, v, source, rows)


def _on_one_device(
    k: Buffer, v: Buffer, source: jax.Array, rows: jax.Array, *, interpret: bool | pltpu.InterpretParams
) -> tuple[Stored, Stored]:
    """The same for the rows and heads of one device."""
    batch, heads, slots, dim = k.shape
    retain = source.shape[-1]
    together = heads if source.ndim == 2 else 1  # KV heads of one grid step, in which the same slots stay
    source = source if source.ndim == 3 else source[:, None]
    # The numbers of the rows that evict, in order, without a sort: a row's turn is how many such rows come before it.
    row = jnp.arange(batch, dtype=jnp.int32)
    turn = jnp.cumsum(rows, dtype=jnp.int32) - 1
    evicting = jnp.sum(jnp.where(rows[None, :] & (turn[None, :] == row[:, None]), row[None, :], 0), axis=1)
    # The grid has at least one row. If none evicts, that row's first block is written back unchanged.
    some = jnp.sum(rows, dtype=jnp.int32)[None]

    int8 = isinstance(k, Int8KV)
    block = TILE if int8 else min(TILE, slots)  # scales lie along lanes, of which a block has all
    blocks, tiles = pl.cdiv(slots, block), pl.cdiv(retain, block)
    edges = jnp.arange(blocks + 1, dtype=jnp.int32) * block
    # How many slots that stay lie before block c: [B, turns, blocks + 1].
    before = jnp.sum((source[:, :, None, :] < edges[None, None, :, None]).astype(jnp.int32), axis=-1)
    turns = before.shape[1]  # grid steps for the KV heads of a row: 1 or K
    before = before.reshape(-1)  # prefetched scalars are passed flat
    padding = ((0, 0), (0, 0), (0, (tiles + 1) * block - retain))
    source = jnp.pad(source, padding, constant_values=-1).reshape(batch, source.shape[1], tiles + 1, block)

    def of_block(
        i: jax.Array, h: jax.Array, c: jax.Array, some: jax.Ref, evicting: jax.Ref, before: jax.Ref
    ) -> tuple[jax.Array, jax.Array, jax.Array, int]:
        """The block to read at grid step (i, h, c): block c, and at the last step, which only writes, the last one."""
        del some, before
        return evicting[i], h, jnp.minimum(c, blocks - 1), 0

    def of_tile(
        i: jax.Array, h: jax.Array, c: jax.Array, some: jax.Ref, evicting: jax.Ref, before: jax.Ref
    ) -> tuple[jax.Array, jax.Array, jax.Array, int]:
        """The tile to write: that which the first slot that stays from block c on belongs to."""
        row = evicting[i]
        filling = before[(row * turns + h) * (blocks + 1) + c] // block
        return row, h, jnp.where(some[0] > 0, jnp.minimum(filling, tiles - 1), 0), 0

    whole = lambda i, h, c, some, evicting, before: (evicting[i], h, 0, 0)
    kv_block: Any = pl.BlockSpec((1, together, block, dim), of_block)
    kv_tile: Any = pl.BlockSpec((1, together, block, dim), of_tile)
    scratch = [pltpu.VMEM((2, together, 2 * block, dim), jnp.int32)]
    if int8:
        # Scales have their slots on the last axis.
        lanes = lambda index: lambda *arguments: (*(at := index(*arguments))[:2], 0, at[2])
        kv_block = from_parts(k, kv_block, pl.BlockSpec((1, together, 1, block), lanes(of_block)))
        kv_tile = from_parts(k, kv_tile, pl.BlockSpec((1, together, 1, block), lanes(of_tile)))
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
    some_ref,  # [1]: how many rows evict
    evicting_ref,  # [B]: their numbers
    before_ref,  # [B * turns * (blocks + 1)]: how many slots that stay lie before each block
    # inputs
    source_ref,  # [1, 1, tiles + 1, block]: the slots that stay, then -1
    k_ref,  # [1, k, block, H], k KV heads of one grid step; of int8 also scales [1, k, 1, block]
    v_ref,
    # outputs
    k_tile_ref,  # as the inputs
    v_tile_ref,
    # scratch
    bits_ref,  # [2 (keys and values), k, 2 blocks, H]: the tile being filled, and the next
    scale_bits_ref=None,  # [2, k, 1, 2 blocks]; None without scales
    *,
    block: int,
    blocks: int,
    tiles: int,
    slots: int,
) -> None:
    """Grid step (i, h, c): add block c of the i-th row that evicts to its tiles, and write the first of the two."""
    i, h, c = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    row = evicting_ref[i]
    before = lambda c: before_ref[(row * pl.num_programs(1) + h) * (blocks + 1) + c]
    tile = before(c) // block

    @pl.when(c == 0)
    def _():
        bits_ref[...] = jnp.zeros_like(bits_ref)
        if scale_bits_ref is not None:
            scale_bits_ref[...] = jnp.zeros_like(scale_bits_ref)

    def destinations() -> jax.Array:
        """Which slot goes where, [block, 2 blocks]: 1 at [s, r] if this block's slot s goes to place r of the tiles."""
        at = [source_ref[0, 0, pl.ds(jnp.minimum(tile + n, tiles), 1), :] for n in (0, 1)]
        wanted = jnp.concatenate([jnp.broadcast_to(x, (block, block)) for x in at], axis=1)
        slot = c * block + lax.broadcasted_iota(jnp.int32, wanted.shape, 0)
        return jnp.where(wanted == slot, jnp.float32(1), jnp.float32(0)).astype(jnp.bfloat16)

    def gather(block_ref: jax.Ref, goes: jax.Array) -> jax.Array:
        """The block's slots that stay, at their places in the two tiles: float32's bits, or int8's numbers.

        The result is int32 [k, 2 blocks, H].
        """
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

    def gather_scales(scale_ref: jax.Ref, goes: jax.Array) -> jax.Array:
        """The same for scales, as float32's bits: [k, 1, 2 blocks]."""
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
    buffers = [(*to_parts(tile_ref), *to_parts(ref)) for tile_ref, ref in ((k_tile_ref, k_ref), (v_tile_ref, v_ref))]

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

    # A full tile makes room for the next. The last one stays: the steps that follow write it again unchanged.
    full = before(jnp.minimum(c + 1, blocks)) // block > tile

    @pl.when(full & (tile + 1 < tiles))
    def _():
        bits_ref[:, :, :block] = bits_ref[:, :, block:]
        bits_ref[:, :, block:] = jnp.zeros_like(bits_ref[:, :, block:])
        if scale_bits_ref is not None:
            scale_bits_ref[..., :block] = scale_bits_ref[..., block:]
            scale_bits_ref[..., block:] = jnp.zeros_like(scale_bits_ref[..., block:])
