"""select in plain XLA, by bisection: no sort.

The score of the last slot that stays is found by counting: bit by bit, the highest floor that at least ``retain``
scores reach. Ties at that score are settled the same way by position, then by slot. What stays then moves to the front
in log2(S) steps, without a sort or a gather.

On CPU it took 0.26 to 0.59 of the time of sorting by (score, position) from 2500 slots x 32 rows on.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float32, Int32

from jkv.ops.select.bits import in_order

_LOWEST = np.int32(np.iinfo(np.int32).min)


def select(
    scores: Float32[Array, "B l k S"], positions: Int32[Array, "B l k S"], retain: int
) -> Int32[Array, "B l k R"]:
    return _to_the_front(scores, positions, jnp.int32(retain))[..., :retain]


@jax.jit  # compiled once for any ``retain``, where it is called outside a compiled program
def _to_the_front(
    scores: Float32[Array, "B l k S"], positions: Int32[Array, "B l k S"], retain: Int32[Array, ""]
) -> Int32[Array, "B l k S"]:
    slots = scores.shape[-1]
    # Rows and keep sets along one axis: TPU puts eight of them in one register, [B, 1, 1, S] fills an eighth of it.
    score, position = scores.reshape(-1, slots), positions.reshape(-1, slots)
    slot = lax.broadcasted_iota(jnp.int32, score.shape, 1)
    stays, tied = jnp.zeros(score.shape, jnp.bool_), jnp.ones(score.shape, jnp.bool_)
    want = jnp.full((score.shape[0], 1), retain)
    for key, bits in ((in_order(score), 32), (position, 32), (slot, (slots - 1).bit_length())):
        stays, tied, want = _settle(key, bits, stays, tied, want)
    return _front(stays | tied, slot).reshape(scores.shape)


def _settle(
    key: Int32[Array, "rows S"],
    bits: int,
    stays: Bool[Array, "rows S"],
    tied: Bool[Array, "rows S"],
    want: Int32[Array, "rows 1"],
) -> tuple[Bool[Array, "rows S"], Bool[Array, "rows S"], Int32[Array, "rows 1"]]:
    """Of the tied slots, ``want`` of highest key: those above the last one's key stay, those at it are tied."""
    count = lambda which: jnp.sum(which, axis=-1, keepdims=True, dtype=jnp.int32)

    def halve(i: jax.Array, floor: jax.Array) -> jax.Array:
        higher = floor + lax.shift_left(jnp.int32(1), jnp.int32(bits - 1) - i)
        return jnp.where(count(tied & (key >= higher)) >= want, higher, floor)

    start = jnp.full(want.shape, _LOWEST if bits == 32 else 0, jnp.int32)
    floor = lax.fori_loop(jnp.int32(0), jnp.int32(bits), halve, start)
    above = tied & (key > floor)
    return stays | above, tied & (key == floor), want - count(above)


def _front(stays: Bool[Array, "rows S"], slot: Int32[Array, "rows S"]) -> Int32[Array, "rows S"]:
    """At the front, ascending, the slots that stay.

    Each moves left by the number of slots before it that go, one bit of that number at a time, lowest bit first: then
    no two ever meet. Only the number moves: where it arrives, adding it gives the slot it came from.
    """
    left = jnp.where(stays, jnp.cumsum(~stays, axis=-1, dtype=jnp.int32), 0)
    step = 1
    while step < slot.shape[-1]:
        arriving = jnp.roll(left, -step, axis=-1)
        left = jnp.where(arriving & step != 0, arriving, jnp.where(left & step != 0, 0, left))
        step *= 2
    return left + slot
