"""Redundancy of keys (R-KV, arXiv:2505.24133): how much a key says what others say too, the newest excepted."""

import jax
import jax.numpy as jnp

from jkv.axes import Array, Bool, Float, Int

BLOCK = 256  # keys compared with all others at a time: [B, K, BLOCK, S] is the largest temporary


def redundancy(
    keys: Float[Array, "B K S H"],
    positions: Int[Array, "B k S"],
    occupied: Bool[Array, "B S"],
    threshold: float = 0.5,
) -> Float[Array, "B K S"]:
    """Softmax over slots of the mean cosine similarity that all keys have with a key.

    A key's similarity with itself counts as 0. So does, for each key, that with the newest of the keys similar to it
    (cosine above ``threshold``): of a cluster, the newest is spared. The mean is over the keys that point, as in the
    source's code. Unlike there, a key that resembles none spares none (there it spares key 0).
    """
    rows, heads, slots, _ = keys.shape
    block = min(BLOCK, slots)
    count = -(-slots // block)
    wide = keys.astype(jnp.float32)
    wide = jnp.where(occupied[:, None, :, None], wide, 0.0)
    unit = wide / (jnp.sqrt(jnp.sum(wide * wide, axis=-1, keepdims=True)) + 1e-8)
    padded = jnp.pad(unit, ((0, 0), (0, 0), (0, count * block - slots), (0, 0)))
    position = jnp.broadcast_to(positions, (rows, heads, slots))
    slot = jnp.arange(slots)

    def body(i: jax.Array, total: jax.Array) -> jax.Array:
        these = jax.lax.dynamic_slice_in_dim(padded, i * block, block, axis=2)
        similarity = jnp.einsum("BKiH,BKSH->BKiS", these, unit)
        itself = (i * block + jnp.arange(block))[:, None] == slot[None, :]
        similarity = jnp.where(itself[None, None], 0.0, similarity)
        similar = (similarity > threshold) & occupied[:, None, None, :]
        age = jnp.where(similar, position[:, :, None, :], -1)
        newest = similar & (age == jnp.max(age, axis=-1, keepdims=True))
        return total + jnp.sum(jnp.where(newest, 0.0, similarity), axis=2)

    total = jax.lax.fori_loop(0, count, body, jnp.zeros((rows, heads, slots), jnp.float32))
    n = jnp.sum(occupied, axis=-1).astype(jnp.float32)[:, None, None]
    return jax.nn.softmax(jnp.where(occupied[:, None, :], total / n, -jnp.inf), axis=-1)
