"""insert as one scatter per buffer, which XLA performs in place on a donated or loop-carried operand.

On CPU the scatter has one index for each row; elsewhere one for each row and KV head. With one for each row the TPU
compiler changes the layout of the buffer, and so copies all of it twice a step.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

from jkv.ops.buffer import Buffer, Stored, by_part, like


def insert(
    k: Buffer,
    v: Buffer,
    k_new: Float[Array, "B K H"],
    v_new: Float[Array, "B K H"],
    slot: Int32[Array, "B"] | Int32[Array, "B K"],
) -> tuple[Buffer, Buffer]:
    """See `jkv.ops.insert.api`."""
    slots = jnp.int32(k.shape[2])
    at = jnp.where(slot < 0, slots, slot)  # a negative index would count from the end; one past the end is dropped
    new = like(k, k_new[:, :, None]), like(v, v_new[:, :, None])
    if slot.ndim == 2:
        return _by_head(k, v, *new, at)
    return lax.platform_dependent(k, v, *new, at, cpu=_by_row, default=_by_head)


def _by_row(k: Buffer, v: Buffer, k_new: Stored, v_new: Stored, at: Int32[Array, " B"]) -> tuple[Stored, Stored]:
    row = jnp.arange(k.shape[0], dtype=jnp.int32)

    def put(leaf: jax.Array, new: jax.Array, *, axis: int) -> jax.Array:
        """One array of a buffer, slots on ``axis``, with the new tokens' part of it written."""
        where = (row, slice(None), at) if axis == 2 else (row, slice(None), 0, at)
        return leaf.at[where].set(new[:, :, 0] if axis == 2 else new[:, :, 0, 0], mode="drop")

    return by_part(put, k, k_new), by_part(put, v, v_new)


def _by_head(
    k: Buffer, v: Buffer, k_new: Stored, v_new: Stored, at: Int32[Array, "B"] | Int32[Array, "B K"]
) -> tuple[Stored, Stored]:
    rows, heads = k.shape[:2]
    at = jnp.broadcast_to(at[:, None] if at.ndim == 1 else at, (rows, heads))
    row, head = jnp.arange(rows, dtype=jnp.int32)[:, None], jnp.arange(heads, dtype=jnp.int32)[None, :]

    def put(leaf: jax.Array, new: jax.Array, *, axis: int) -> jax.Array:
        """One array of a buffer, slots on ``axis``, with the new tokens' part of it written."""
        where = (row, head, at) if axis == 2 else (row, head, 0, at)
        return leaf.at[where].set(new[:, :, 0] if axis == 2 else new[:, :, 0, 0], mode="drop")

    return by_part(put, k, k_new), by_part(put, v, v_new)
