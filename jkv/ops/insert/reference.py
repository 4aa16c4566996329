"""insert by selection over the whole buffer. For tests; it shares no code with the other implementations."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32


def insert(
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    k_new: Float[Array, "B K H"],
    v_new: Float[Array, "B K H"],
    slot: Int32[Array, "B"] | Int32[Array, "B K"],
) -> tuple[Float[Array, "B K S H"], Float[Array, "B K S H"]]:
    slot = slot[:, None] if slot.ndim == 1 else slot
    here = (jnp.arange(k.shape[2], dtype=jnp.int32)[None, None, :] == slot[:, :, None])[..., None]
    return jnp.where(here, k_new[:, :, None], k), jnp.where(here, v_new[:, :, None], v)
