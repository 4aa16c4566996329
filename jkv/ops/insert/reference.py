"""insert by selection over the whole buffer. For tests; it shares no code with the others."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from jkv.ops.buffer import Buffer, Int8KV


def insert(
    k: Buffer,
    v: Buffer,
    k_new: Float[Array, "B K H"],
    v_new: Float[Array, "B K H"],
    slot: Int32[Array, "B"] | Int32[Array, "B K"],
) -> tuple[Buffer, Buffer]:
    """See `jkv.ops.insert.api`."""
    slot = slot[:, None] if slot.ndim == 1 else slot
    here = jnp.arange(k.shape[2], dtype=jnp.int32)[None, None, :] == slot[:, :, None]
    return _put(k, k_new, here), _put(v, v_new, here)


def _put(buffer: Buffer, new: Float[Array, "B K H"], here: Bool[Array, "B k S"]) -> Buffer:
    """The buffer with ``new`` in the slots where ``here`` is true, for all KV heads (k = 1) or for each (k = K)."""
    if not isinstance(buffer, Int8KV):
        return jnp.where(here[..., None], new[:, :, None], buffer)
    wide = new.astype(jnp.float32)
    step = jnp.maximum(jnp.max(wide, axis=-1), -jnp.min(wide, axis=-1)) * jnp.float32(1 / 127)
    whole = jnp.rint(wide * (1 / jnp.where(step == 0, 1.0, step))[..., None])
    values = jnp.where(here[..., None], whole[:, :, None], buffer.values.astype(jnp.float32))
    scale = jnp.where(here, step[:, :, None], buffer.scale[:, :, 0])
    return Int8KV(values.astype(jnp.int8), scale[:, :, None], buffer.dtype)
