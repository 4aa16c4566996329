"""insert as one scatter per buffer, which XLA performs in place on a donated or loop-carried operand."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32


def insert(
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    k_new: Float[Array, "B K H"],
    v_new: Float[Array, "B K H"],
    slot: Int32[Array, "B"] | Int32[Array, "B K"],
) -> tuple[Float[Array, "B K S H"], Float[Array, "B K S H"]]:
    slots = jnp.int32(k.shape[2])
    row = jnp.arange(k.shape[0], dtype=jnp.int32)
    at = jnp.where(slot < 0, slots, slot)  # a negative index would count from the end; past the end is dropped
    if slot.ndim == 1:
        return k.at[row, :, at].set(k_new, mode="drop"), v.at[row, :, at].set(v_new, mode="drop")
    place = (row[:, None], jnp.arange(k.shape[1], dtype=jnp.int32)[None, :], at)
    return k.at[place].set(k_new, mode="drop"), v.at[place].set(v_new, mode="drop")
