"""Redundancy of keys (R-KV, arXiv:2505.24133): how similar a key is to the row's other keys. Used by rkv and gkv."""

import jax
import jax.numpy as jnp

from jkv.axes import Array, Bool, Float, Int
from jkv.ops.key_similarity import key_similarity


def redundancy(
    keys: Float[Array, "B K S H"],
    positions: Int[Array, "B k S"],
    occupied: Bool[Array, "B S"],
    threshold: float = 0.5,
    *,
    implementation: str = "auto",
) -> Float[Array, "B K S"]:
    """Softmax over slots of the mean cosine similarity that all keys have with a key.

    A key's similarity with itself counts as 0. Besides, each key spares one other: of the keys similar to it, the
    newest, whose similarity with it counts as 0. So of a cluster of similar keys the newest looks least redundant.

    Differs from the source's code (Zefan-Cai/R-KV): a key that resembles none spares none. There it spares key 0.

    Args:
        keys: as cached.
        positions: of the token in each slot; k is 1 where keep sets are shared, else K.
        occupied: the row's first slots, as many as there are tokens.
        threshold: cosine above which two keys are similar.
        implementation: of `jkv.ops.key_similarity`.

    Returns:
        Numbers that sum to 1 over the occupied slots; 0 for the others.
    """
    length = jnp.sum(occupied, axis=-1, dtype=jnp.int32)
    mean = key_similarity(keys, positions, length, threshold=threshold, implementation=implementation)
    return jax.nn.softmax(jnp.where(occupied[:, None, :], mean, -jnp.inf), axis=-1)
