"""key_similarity as a TPU kernel: one block of keys i against one block of keys j at a time, in VMEM.

Which of the keys j is the newest that is similar to a key i is known only after the last block of j. A second pass over
the S x S similarities isn't needed, because the sum over i has two parts. The sum of all similarities of a key j needs
no pairs: with unit keys u and their sum U it is u_j . (U - u_j). From it come off the similarities that count as 0. The
pass over pairs finds, for each key i, the newest similar key (as a running maximum of positions) and the similarity
with it, and after the last block of j subtracts that one number from the key at that position. So there are half the
matrix products of two passes, and no sum over S x S.

In names below, a key i is a *pointing* key: it points to the newest key similar to it, which is spared that similarity.

The matrix unit multiplies the keys as they are, and the products are divided by norms afterwards. For bfloat16 keys the
products are then as accurate as in float32, with one pass of the matrix unit.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Float32, Int32

from jkv.ops import sharding

BLOCK = 512  # keys at a time
_LANES = 128
_NONE, _DEAD_POINTING, _DEAD = -1, -2, -3  # they stand in place of positions, and must all differ


def key_similarity(
    keys: Float[Array, "B K S H"],
    positions: Int32[Array, "B k S"],
    length: Int32[Array, "B"],
    *,
    threshold: float,
    interpret: bool | pltpu.InterpretParams = False,
) -> Float32[Array, "B K S"]:
    """See `jkv.ops.key_similarity.api`.

    Args:
      keys: the row's keys.
      positions: the position of each key.
      length: how many slots are occupied.
      threshold: the cosine above which keys are similar.
      interpret: whether Pallas' interpreter runs the kernel, which works on CPU.

    Raises:
      NotImplementedError: the keys are neither bfloat16 nor float32.
    """
    if keys.dtype not in (jnp.float32, jnp.bfloat16):
        raise NotImplementedError(f"the TPU kernel takes float32 and bfloat16 keys, not {keys.dtype}")
    letters = ("BKSH", "BKS" if positions.shape[1] > 1 else "BkS", "B")
    inputs = tuple(map(sharding.divisible, letters, (keys.shape, positions.shape, length.shape)))
    run = functools.partial(_key_similarity, threshold=threshold, interpret=interpret)
    (mean,) = sharding.per_shard(run, inputs, (inputs[0][:3],))(keys, positions, length)
    return mean


def _key_similarity(
    keys: Float[Array, "B K S H"],
    positions: Int32[Array, "B k S"],
    length: Int32[Array, "B"],
    *,
    threshold: float,
    interpret: bool | pltpu.InterpretParams,
) -> tuple[Float32[Array, "B K S"]]:
    """The same for the rows and heads of one device."""
    rows, heads, slots, dim = keys.shape
    block = min(BLOCK, pl.cdiv(slots, _LANES) * _LANES)
    blocks = pl.cdiv(slots, block)
    wide = blocks * block
    per_head = positions.shape[1] > 1

    # Beyond a row's last occupied block the index stays at that block, so that nothing more is fetched.
    def pointing(
        b: jax.Array, head: jax.Array, i: jax.Array, j: jax.Array, length: jax.Ref
    ) -> tuple[jax.Array, jax.Array, jax.Array, int]:
        """The block of pointing keys at grid step (b, head, i, j)."""
        del j
        return b, head, jnp.minimum(i, _last(length[b], block)), 0

    def other(b: jax.Array, i: jax.Array, j: jax.Array, length: jax.Ref) -> jax.Array:
        """The number of the block of keys that they are compared with."""
        last = _last(length[b], block)
        return jnp.where(i > last, last, jnp.minimum(j, last))

    row = lambda dtype: pltpu.VMEM((1, wide), dtype)
    column = lambda dtype: pltpu.VMEM((block, 1), dtype)
    mean = pl.pallas_call(
        functools.partial(_kernel, slots=slots, threshold=threshold),
        out_shape=jax.ShapeDtypeStruct((rows, heads, 1, slots), jnp.float32),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(rows, heads, blocks, blocks),
            in_specs=[
                pl.BlockSpec((1, 1, block, dim), pointing),
                pl.BlockSpec((1, 1, block, dim), lambda b, head, i, j, length: (b, head, other(b, i, j, length), 0)),
                pl.BlockSpec(
                    (1, 1, 1, block),
                    lambda b, head, i, j, length: (b, head if per_head else 0, 0, other(b, i, j, length)),
                ),
            ],
            out_specs=pl.BlockSpec((1, 1, 1, slots), lambda b, head, i, j, length: (b, head, 0, 0)),
            scratch_shapes=[
                row(jnp.int32),
                row(jnp.float32),
                row(jnp.float32),
                row(jnp.float32),
                pltpu.VMEM((1, dim), jnp.float32),
                column(jnp.float32),
                column(jnp.int32),
                column(jnp.float32),
            ],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"),
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * rows * heads * slots * slots * dim,
            bytes_accessed=rows * heads * (blocks + 1) * slots * dim * keys.dtype.itemsize,
            transcendentals=0,
        ),
        interpret=interpret,
        name="key_similarity_tpu",
    )(length, keys, keys, positions[:, :, None, :])
    return (mean[:, :, 0, :],)


def _last(length: jax.Array, block: int) -> jax.Array:
    """Index of the last occupied block (0 in an empty row)."""
    return jnp.maximum(lax.div(length + jnp.int32(block - 1), jnp.int32(block)) - 1, 0)


def _kernel(
    # prefetched scalars
    length_ref,  # [B] int32
    # inputs
    pointing_ref,  # [1, 1, block, H]
    key_ref,  # [1, 1, block, H]
    position_ref,  # [1, 1, 1, block] int32
    # output
    mean_ref,  # [1, 1, 1, S] float32
    # scratch for each key, along lanes
    at_ref,  # [1, wide] int32: its position, or _DEAD
    scale_ref,  # [1, wide] float32: one over its norm
    whole_ref,  # [1, wide] float32: the sum of its similarities with all others
    spared_ref,  # [1, wide] float32: the sum of those that count as 0
    total_ref,  # [1, H] float32: the sum of all unit keys
    # scratch for each pointing key, along sublanes
    norm_ref,  # [block, 1] float32: its norm
    newest_ref,  # [block, 1] int32: the newest position of a similar key so far, or _NONE
    there_ref,  # [block, 1] float32: the similarity with that key, times the pointing key's norm
    *,
    slots: int,
    threshold: float,
) -> None:
    """Grid step (b, head, i, j): compare block i of pointing keys with block j of keys."""
    i, j, length = pl.program_id(2), pl.program_id(3), length_ref[pl.program_id(0)]
    block = key_ref.shape[2]
    last = _last(length, block)
    here = lambda index: pl.ds(pl.multiple_of(index * block, _LANES), block)
    live = lambda index: index * block + lax.broadcasted_iota(jnp.int32, (block, 1), 0) < length

    def compare(*, itself: bool) -> None:
        """Update ``newest`` and ``there``. itself: whether both blocks are the same, so that keys meet themselves."""
        exact = lax.Precision.HIGHEST if key_ref.dtype == jnp.float32 else lax.Precision.DEFAULT
        similarity = lax.dot_general(
            pointing_ref[0, 0], key_ref[0, 0], (((1,), (1,)), ((), ())), precision=exact,
            preferred_element_type=jnp.float32,
        )  # fmt: skip
        similarity = similarity * scale_ref[:, here(j)]
        similar = similarity > norm_ref[...] * jnp.float32(threshold)
        if itself:
            slot = lax.broadcasted_iota
            similar &= slot(jnp.int32, (block, block), 0) != slot(jnp.int32, (block, block), 1)
        age = jnp.where(similar, at_ref[:, here(j)], _NONE)
        newest = jnp.max(age, axis=1, keepdims=True)
        there = jnp.sum(jnp.where(age == newest, similarity, 0.0), axis=1, keepdims=True)
        there_ref[...] = jnp.where(newest > newest_ref[...], there, there_ref[...])
        newest_ref[...] = jnp.maximum(newest, newest_ref[...])

    @pl.when((i <= last) & (j <= last))
    def _():
        @pl.when((i == 0) & (j == 0))
        def _():
            total_ref[...] = jnp.zeros_like(total_ref)
            whole_ref[...] = jnp.zeros_like(whole_ref)
            spared_ref[...] = jnp.zeros_like(spared_ref)

        @pl.when(j == 0)
        def _():
            unit, norm = _unit(pointing_ref, live(i))
            total_ref[...] += jnp.sum(unit, axis=0, keepdims=True)
            norm_ref[...] = norm
            newest_ref[...] = jnp.full_like(newest_ref, _NONE)
            there_ref[...] = jnp.zeros_like(there_ref)

        @pl.when(i == 0)
        def _():
            scale_ref[:, here(j)] = _as_row(1 / _unit(key_ref, live(j))[1])
            slot = j * block + lax.broadcasted_iota(jnp.int32, (1, block), 1)
            at_ref[:, here(j)] = jnp.where(slot < length, position_ref[0, 0], _DEAD)

        pl.when(i == j)(functools.partial(compare, itself=True))
        pl.when(i != j)(functools.partial(compare, itself=False))

        @pl.when(j == last)
        def _():
            newest = jnp.where(live(i), newest_ref[...], _DEAD_POINTING)
            there = there_ref[...] / norm_ref[...]

            @pl.loop(0, last + 1)
            def _(block_of_keys):
                hit = at_ref[:, here(block_of_keys)] == newest
                spared_ref[:, here(block_of_keys)] += jnp.sum(jnp.where(hit, there, 0.0), axis=0, keepdims=True)

        @pl.when(i == last)
        def _():
            unit, _ = _unit(key_ref, live(j))
            whole_ref[:, here(j)] = _as_row(jnp.sum(unit * (total_ref[...] - unit), axis=1, keepdims=True))

        @pl.when((i == last) & (j == last))
        def _():
            occupied = lax.broadcasted_iota(jnp.int32, whole_ref.shape, 1) < length
            mean = (whole_ref[...] - spared_ref[...]) / jnp.maximum(length, 1).astype(jnp.float32)
            mean_ref[0, 0] = jnp.where(occupied, mean, 0.0)[:, :slots]


def _unit(ref: jax.Ref, live: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A block's keys scaled to unit length [block, H], zero where dead, and their norms [block, 1], float32."""
    wide = jnp.where(live, ref[0, 0].astype(jnp.float32), 0.0)
    norm = jnp.sqrt(jnp.sum(wide * wide, axis=1, keepdims=True)) + 1e-8
    return wide / norm, norm


def _as_row(column: jax.Array) -> jax.Array:
    """[block, 1] -> [1, block]."""
    return jnp.broadcast_to(column, (column.shape[0], _LANES)).T[:1]
