"""select as one TPU kernel: it reads eight rows at a time into VMEM, and writes only the slots that stay.

The method is that of xla.py: bisection by counting, then moves to the front. Each row lies in one sublane, its slots
along the lanes.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float32, Int32

from jkv.ops import sharding
from jkv.ops.select.bits import in_order

_ROWS = 8  # rows at a time: the sublanes of a vector register
_LANES = 128
_LARGEST = 65536  # slots of a row: the kernel may hold about 30 arrays of [_ROWS, S] in VMEM
_LOWEST = np.int32(np.iinfo(np.int32).min)


def select(
    scores: Float32[Array, "B l k S"],
    positions: Int32[Array, "B l k S"],
    retain: int,
    *,
    interpret: bool | pltpu.InterpretParams = False,
) -> Int32[Array, "B l k R"]:
    """See `jkv.ops.select.api`.

    Args:
      scores: each slot's score.
      positions: each slot's position.
      retain: how many slots stay.
      interpret: whether Pallas' interpreter runs the kernel, which works on CPU.

    Raises:
      NotImplementedError: a row has more slots than fit into VMEM.
    """
    if scores.shape[-1] > _LARGEST:
        raise NotImplementedError(
            f"the TPU kernel holds a row in VMEM, which has room for at most {_LARGEST} slots, not {scores.shape[-1]}"
        )
    letters = sharding.divisible("BlKS" if scores.shape[2] > 1 else "BlkS", scores.shape)
    run = functools.partial(_select, retain=retain, interpret=interpret)
    (kept,) = sharding.per_shard(run, (letters, letters), (letters,))(scores, positions)
    return kept


def _select(
    scores: Float32[Array, "B l k S"],
    positions: Int32[Array, "B l k S"],
    *,
    retain: int,
    interpret: bool | pltpu.InterpretParams,
) -> tuple[Int32[Array, "B l k R"]]:
    """The same for the rows and keep sets of one device."""
    slots = scores.shape[-1]
    rows = int(np.prod(scores.shape[:-1]))
    wide = pl.cdiv(slots, _LANES) * _LANES
    spare = ((0, -rows % _ROWS), (0, wide - slots))
    score, position = (jnp.pad(x.reshape(rows, slots), spare) for x in (scores, positions))
    block = pl.BlockSpec((_ROWS, wide), lambda i: (i, 0))
    kept = pl.pallas_call(
        functools.partial(_kernel, slots=slots, retain=retain),
        out_shape=jax.ShapeDtypeStruct((score.shape[0], retain), jnp.int32),
        grid=(score.shape[0] // _ROWS,),
        in_specs=[block, block],
        out_specs=pl.BlockSpec((_ROWS, retain), lambda i: (i, 0)),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
        interpret=interpret,
        name="select_tpu",
    )(score, position)
    return (kept[:rows].reshape(*scores.shape[:-1], retain),)


def _kernel(
    score_ref,  # [_ROWS, wide] float32
    position_ref,  # [_ROWS, wide] int32
    kept_ref,  # [_ROWS, R] int32
    *,
    slots: int,
    retain: int,
) -> None:
    """The slots that stay in _ROWS rows, padded to ``wide`` slots of which the first ``slots`` count."""
    wide = score_ref.shape[1]
    slot = lax.broadcasted_iota(jnp.int32, score_ref.shape, 1)
    stays, tied = jnp.zeros(score_ref.shape, jnp.int32), (slot < slots).astype(jnp.int32)
    want = jnp.full((_ROWS, 1), retain, jnp.int32)
    for key, bits in ((in_order(score_ref[...]), 32), (position_ref[...], 32), (slot, (slots - 1).bit_length())):
        stays, tied, want = _settle(key, bits, stays, tied, want)
    stays = stays | tied
    left = jnp.where(stays == 1, slot - (_prefix_sum(stays, slot) - 1), 0)
    for step in _powers(wide):
        arriving = pltpu.roll(left, wide - step, 1)
        left = jnp.where(arriving & step != 0, arriving, jnp.where(left & step != 0, 0, left))
    kept_ref[...] = (left + slot)[:, :retain]


def _settle(
    key: jax.Array, bits: int, stays: jax.Array, tied: jax.Array, want: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Choose the ``want`` tied slots of highest key: `_settle` of xla.py, but ``stays`` and ``tied`` are 0 or 1."""
    count = lambda which: jnp.sum(which, axis=1, keepdims=True, dtype=jnp.int32)

    def halve(i: jax.Array, floor: jax.Array) -> jax.Array:
        """Set bit i of the threshold, from the highest bit on, if enough keys reach it then."""
        higher = floor + lax.shift_left(jnp.int32(1), jnp.int32(bits - 1) - i)
        return jnp.where(count(jnp.where(key >= higher, tied, 0)) >= want, higher, floor)

    start = jnp.full(want.shape, _LOWEST if bits == 32 else 0, jnp.int32)
    floor = lax.fori_loop(jnp.int32(0), jnp.int32(bits), halve, start)
    above = jnp.where(key > floor, tied, 0)
    return stays | above, jnp.where(key == floor, tied, 0), want - count(above)


def _prefix_sum(x: jax.Array, slot: jax.Array) -> jax.Array:
    """The sum of each row up to and including each slot."""
    for step in _powers(x.shape[1]):
        x = x + jnp.where(slot >= step, pltpu.roll(x, step, 1), 0)
    return x


def _powers(limit: int) -> list[int]:
    """1, 2, 4 and so on, those below ``limit``."""
    return [1 << i for i in range((limit - 1).bit_length())]
