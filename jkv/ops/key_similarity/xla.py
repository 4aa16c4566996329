"""key_similarity in plain XLA: the similarities of BLOCK keys i at a time with all keys j (see `api`)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

BLOCK = 256  # keys i at a time: the largest temporary is [B, K, BLOCK, S]


def key_similarity(
    keys: Float[Array, "B K S H"],
    positions: Int32[Array, "B k S"],
    length: Int32[Array, "B"],
    *,
    threshold: float,
) -> Float32[Array, "B K S"]:
    """See `jkv.ops.key_similarity.api`."""
    rows, heads, slots, _ = keys.shape
    block = min(BLOCK, slots)
    count = -(-slots // block)
    occupied = jnp.arange(slots)[None, :] < length[:, None]
    wide = keys.astype(jnp.float32)
    wide = jnp.where(occupied[:, None, :, None], wide, 0.0)
    unit = wide / (jnp.sqrt(jnp.sum(wide * wide, axis=-1, keepdims=True)) + 1e-8)
    padded = jnp.pad(unit, ((0, 0), (0, 0), (0, count * block - slots), (0, 0)))
    position = jnp.broadcast_to(positions, (rows, heads, slots))
    slot = jnp.arange(slots)

    def body(i: jax.Array, total: jax.Array) -> jax.Array:
        """Add to each key's total [B, K, S] its similarities with the keys of block i."""
        these = jax.lax.dynamic_slice_in_dim(padded, i * block, block, axis=2)
        similarity = jnp.einsum("BKiH,BKSH->BKiS", these, unit, precision=jax.lax.Precision.HIGHEST)
        itself = (i * block + jnp.arange(block))[:, None] == slot[None, :]
        similarity = jnp.where(itself[None, None], 0.0, similarity)
        similar = (similarity > threshold) & occupied[:, None, None, :]
        age = jnp.where(similar, position[:, :, None, :], -1)
        newest = similar & (age == jnp.max(age, axis=-1, keepdims=True))
        return total + jnp.sum(jnp.where(newest, 0.0, similarity), axis=2)

    total = jax.lax.fori_loop(0, count, body, jnp.zeros((rows, heads, slots), jnp.float32))
    return total / jnp.maximum(length, 1).astype(jnp.float32)[:, None, None]
