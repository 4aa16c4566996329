"""From a policy's scores to priorities (which tokens are protected), and the one token that goes when one has to.

The tie rule is the same for every policy: among equal priorities the oldest position goes first. `victim` holds it for
one token, `jkv.ops.select` for many.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped

from jkv.axes import Array, Float, Int
from jkv.ops.select.bits import in_order
from jkv.policies.base import Slots

_HIGHEST = float(np.finfo(np.float32).max)
_Candidate = tuple[jax.Array, jax.Array, jax.Array]  # key, position, slot


def priority(scores: Float[Array, "B score_layers score_heads S"], slots: Slots) -> Float[Array, "B l k S"]:
    """A priority for every slot of every keep set: those of highest priority stay.

    Where the keep set is shared, the policy's scores are averaged over layers and heads. Protected slots get +inf, dead
    ones -inf. Scores are clipped to finite numbers, so a protected token outlives even one that the policy scores +inf.
    NaN counts as -inf.

    Args:
        scores: the policy's; each of the middle axes is 1 or the model's L or K.
        slots: what the policy was shown.

    Returns:
        float32, with the keep sets of the run.
    """
    if slots.rule.granularity == "shared" and scores.shape[1:3] != (1, 1):
        scores = jnp.mean(scores, axis=(1, 2), keepdims=True)
    scores = jnp.broadcast_to(scores, slots.positions.shape).astype(jnp.float32)
    scores = jnp.where(jnp.isnan(scores), -_HIGHEST, jnp.clip(scores, -_HIGHEST, _HIGHEST))
    scores = jnp.where(slots.protected, jnp.inf, scores)
    return jnp.where(slots.occupied[:, None, None, :], scores, -jnp.inf)


def victim(scores: Float[Array, "B l k S"], positions: Int[Array, "B l k S"]) -> Int[Array, "B l k"]:
    """The one slot to overwrite in each keep set: that of lowest priority, among equals that of the oldest position.

    Args:
        scores: priorities (`priority`), without NaN.
        positions: of the tokens in the slots.
    """
    slots = scores.shape[-1]

    # Compare integers: where only the slot is used, XLA for TPU may keep a running minimum of floats in bfloat16, which
    # makes different scores equal. Rows and keep sets lie along one axis, which fills a TPU's registers better (as in
    # jkv.ops.select.xla). On CPU neither is faster.
    def flat(scores: Float[Array, "B l k S"], positions: Int[Array, "B l k S"]) -> Int[Array, "B l k"]:
        """``_lowest`` on integers, with one axis of rows."""
        rows = lambda x: x.reshape(-1, slots)
        return _lowest(rows(in_order(scores)), rows(positions)).reshape(scores.shape[:-1])

    return jax.lax.platform_dependent(scores, positions, cpu=_lowest, default=flat)


def _lowest(key: Shaped[Array, "*rows S"], position: Int[Array, "*rows S"]) -> Int[Array, "*rows"]:
    """The slot of lowest key, and among equal keys that of the lowest position."""
    slot = jax.lax.broadcasted_iota(jnp.int32, key.shape, key.ndim - 1)

    # One reduction that reads the keys once. Comparing them with their minimum would read them twice; XLA may then
    # compute them twice, rounded differently, and none of them equals the minimum.
    def lower(a: _Candidate, b: _Candidate) -> _Candidate:
        """The one of lower (key, position)."""
        a_first = (a[0] < b[0]) | ((a[0] == b[0]) & (a[1] <= b[1]))
        key, position, slot = (jnp.where(a_first, x, y) for x, y in zip(a, b, strict=True))
        return key, position, slot

    last = jnp.int32(jnp.iinfo(jnp.int32).max)
    highest = jnp.asarray(jnp.inf if key.dtype == jnp.float32 else last, key.dtype)
    return jax.lax.reduce((key, position, slot), (highest, last, jnp.int32(0)), lower, (key.ndim - 1,))[2]
