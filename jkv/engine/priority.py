"""From a policy's scores to what stays: protection, the tie rule and the victim, the same for every policy."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped

from jkv.axes import Array, Float, Int
from jkv.ops.select.bits import in_order
from jkv.policies.base import Slots

_HIGHEST = float(np.finfo(np.float32).max)


def priority(scores: Float[Array, "B score_layers score_heads S"], slots: Slots) -> Float[Array, "B l k S"]:
    """The policy's scores on the run's keep sets: averaged over layers and heads where the keep set is shared.

    Protected slots are at +inf, dead ones at -inf, and no policy's score reaches either: what is protected outlives
    even tokens that a policy scores +inf. A NaN counts as the lowest score.
    """
    if slots.rule.granularity == "shared" and scores.shape[1:3] != (1, 1):
        scores = jnp.mean(scores, axis=(1, 2), keepdims=True)
    scores = jnp.broadcast_to(scores, slots.positions.shape).astype(jnp.float32)
    scores = jnp.where(jnp.isnan(scores), -_HIGHEST, jnp.clip(scores, -_HIGHEST, _HIGHEST))
    scores = jnp.where(slots.protected, jnp.inf, scores)
    return jnp.where(slots.occupied[:, None, None, :], scores, -jnp.inf)


def victim(scores: Float[Array, "B l k S"], positions: Int[Array, "B l k S"]) -> Int[Array, "B l k"]:
    """The one slot to overwrite: lowest score, and among equals the oldest position."""
    slots = scores.shape[-1]

    # Integers: XLA for TPU may keep a running minimum in bfloat16 where only its slot is used. One axis of rows: see
    # jkv.ops.select.xla. On CPU neither pays.
    def flat(scores: jax.Array, positions: jax.Array) -> jax.Array:
        rows = lambda x: x.reshape(-1, slots)
        return _lowest(rows(in_order(scores)), rows(positions)).reshape(scores.shape[:-1])

    return jax.lax.platform_dependent(scores, positions, cpu=_lowest, default=flat)


def _lowest(key: Shaped[Array, "*rows S"], position: Int[Array, "*rows S"]) -> Int[Array, "*rows"]:
    """The slot of lowest (key, position)."""
    slot = jax.lax.broadcasted_iota(jnp.int32, key.shape, key.ndim - 1)

    # One pass that reads keys once. Comparing them with their minimum reads them twice, and XLA may compute them
    # twice, rounded differently: then none of them is the minimum.
    def lower(a, b):
        a_first = (a[0] < b[0]) | ((a[0] == b[0]) & (a[1] <= b[1]))
        return tuple(jnp.where(a_first, x, y) for x, y in zip(a, b, strict=True))

    last = jnp.int32(jnp.iinfo(jnp.int32).max)
    highest = jnp.asarray(jnp.inf if key.dtype == jnp.float32 else last, key.dtype)
    return jax.lax.reduce((key, position, slot), (highest, last, jnp.int32(0)), lower, (key.ndim - 1,))[2]
