"""insert as one scatter per buffer, which XLA performs in place on a donated or loop-carried operand.

On CPU one scatter index a row; elsewhere one a row and head. A row's scatter makes the TPU compiler change the layout
of the buffer, which copies all of it twice a step; a head's doesn't.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32


def insert(
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    k_new: Float[Array, "B K H"],
    v_new: Float[Array, "B K H"],
    slot: Int32[Array, "B"] | Int32[Array, "B K"],
) -> tuple[Float[Array, "B K S H"], Float[Array, "B K S H"]]:
    slots = jnp.int32(k.shape[2])
    at = jnp.where(slot < 0, slots, slot)  # a negative index would count from the end; past the end is dropped
    if slot.ndim == 2:
        return _by_head(k, v, k_new, v_new, at)
    return lax.platform_dependent(k, v, k_new, v_new, at, cpu=_by_row, default=_by_head)


def _by_row(
    k: jax.Array, v: jax.Array, k_new: jax.Array, v_new: jax.Array, at: jax.Array
) -> tuple[jax.Array, jax.Array]:
    row = jnp.arange(k.shape[0], dtype=jnp.int32)
    return k.at[row, :, at].set(k_new, mode="drop"), v.at[row, :, at].set(v_new, mode="drop")


def _by_head(
    k: jax.Array, v: jax.Array, k_new: jax.Array, v_new: jax.Array, at: jax.Array
) -> tuple[jax.Array, jax.Array]:
    rows, heads = k.shape[:2]
    at = jnp.broadcast_to(at[:, None] if at.ndim == 1 else at, (rows, heads))
    row, head = jnp.arange(rows, dtype=jnp.int32)[:, None], jnp.arange(heads, dtype=jnp.int32)[None, :]
    return k.at[row, head, at].set(k_new, mode="drop"), v.at[row, head, at].set(v_new, mode="drop")
