"""select by counting, for each slot, the slots that rank above it. For tests; it shares no code with the others."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32


def select(
    scores: Float32[Array, "B l k S"], positions: Int32[Array, "B l k S"], retain: int
) -> Int32[Array, "B l k R"]:
    """See `jkv.ops.select.api`."""
    slots = scores.shape[-1]
    row = lambda score, position: _one_row(score, position, retain)
    kept = jax.vmap(row)(scores.reshape(-1, slots), positions.reshape(-1, slots))
    return kept.reshape(*scores.shape[:-1], retain)


def _one_row(score: Float32[Array, " S"], position: Int32[Array, " S"], retain: int) -> Int32[Array, " R"]:
    slot = jnp.arange(score.shape[0], dtype=jnp.int32)

    def stays(this: Int32[Array, ""]) -> Bool[Array, ""]:
        """Whether fewer than ``retain`` slots rank above slot ``this``."""
        same, newest = score == score[this], position == position[this]
        better = (score > score[this]) | (same & (position > position[this])) | (same & newest & (slot > this))
        return jnp.sum(better) < retain

    return jnp.nonzero(jax.lax.map(stays, slot), size=retain)[0].astype(jnp.int32)
