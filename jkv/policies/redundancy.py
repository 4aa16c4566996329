"""Redundancy of keys (R-KV, arXiv:2505.24133): how much a key says what others say too, the newest excepted."""

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
    """Softmax over slots of the mean cosine similarity that all keys have with a key (`jkv.ops.key_similarity`).

    A key's similarity with itself counts as 0. So does, for each key, that with the newest of the keys similar to it
    (cosine above ``threshold``): of a cluster, the newest is spared. The mean is over the keys that point, as in the
    source's code. Unlike there, a key that resembles none spares none (there it spares key 0).

    ``occupied``: the row's first slots, as many as there are tokens.
    """
    length = jnp.sum(occupied, axis=-1, dtype=jnp.int32)
    mean = key_similarity(keys, positions, length, threshold=threshold, implementation=implementation)
    return jax.nn.softmax(jnp.where(occupied[:, None, :], mean, -jnp.inf), axis=-1)
