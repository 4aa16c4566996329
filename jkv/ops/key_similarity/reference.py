"""key_similarity with the S x S matrix of one head at a time. For tests; it shares no code with the others."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32


def key_similarity(
    keys: Float[Array, "B K S H"],
    positions: Int32[Array, "B k S"],
    length: Int32[Array, "B"],
    *,
    threshold: float,
) -> Float32[Array, "B K S"]:
    """See `jkv.ops.key_similarity.api`."""
    rows, heads, slots, _ = keys.shape
    mean = jnp.zeros((rows, heads, slots), jnp.float32)
    for b in range(rows):
        for head in range(heads):
            position = positions[b, head if positions.shape[1] > 1 else 0]
            mean = mean.at[b, head].set(_one_head(keys[b, head], position, length[b], threshold))
    return mean


def _one_head(
    keys: Float[Array, "S H"], position: Int32[Array, " S"], length: Int32[Array, ""], threshold: float
) -> Float32[Array, " S"]:
    slots = keys.shape[0]
    live = jnp.arange(slots) < length
    wide = jnp.where(live[:, None], keys.astype(jnp.float32), 0.0)
    unit = wide / (jnp.linalg.norm(wide, axis=1, keepdims=True) + 1e-8)
    cosine = jnp.matmul(unit, unit.T, precision=jax.lax.Precision.HIGHEST)
    cosine = jnp.where(jnp.eye(slots, dtype=jnp.bool_), 0.0, cosine)
    similar = (cosine > threshold) & live[None, :]
    newest = jnp.argmax(jnp.where(similar, position[None, :], -1), axis=1)
    kept = jnp.where(jnp.any(similar, axis=1), cosine[jnp.arange(slots), newest], 0.0)
    spared = jnp.zeros((slots, slots), jnp.float32).at[jnp.arange(slots), newest].set(kept)
    return jnp.sum(cosine - spared, axis=0) / jnp.maximum(length, 1).astype(jnp.float32)
