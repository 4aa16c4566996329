"""attention_weights: what decode_attention's softmax gave to each slot, for policies that score by attention."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32


def attention_weights(
    q: Float[Array, "B N H"], k: Float[Array, "B K S H"], length: Int32[Array, "B"]
) -> Float[Array, "B N S"]:
    """Softmax over each row's occupied slots, float32, zero in dead slots (whatever they hold)."""
    rows, heads, dim = q.shape
    kv_heads, slots = k.shape[1:3]
    live = (jnp.arange(slots, dtype=jnp.int32)[None, :] < length[:, None])[:, None, None, :]
    grouped = q.reshape(rows, kv_heads, heads // kv_heads, dim).astype(jnp.float32)
    score = jnp.einsum("BKGH,BKSH->BKGS", grouped, k.astype(jnp.float32)) * dim**-0.5
    top = jnp.max(jnp.where(live, score, -jnp.inf), axis=-1, keepdims=True, initial=jnp.finfo(jnp.float32).min)
    weight = jnp.where(live, jnp.exp(score - top), 0.0)
    total = jnp.sum(weight, axis=-1, keepdims=True)
    return (weight / jnp.where(total > 0, total, 1.0)).reshape(rows, heads, slots)
