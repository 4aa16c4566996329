"""Attention of the newest n queries over the slots, computed at an eviction from the ring of queries.

Shared by snapkv, tova, rkv, gkv and vase; expected_attention uses the ring's positions. Attention is causal: a query
sees the slots of positions up to its own. The tokens of these n queries are called *observed*. Fewer queries could look
at them, so their attention can't be compared with that of older tokens, and the sources always keep them. Here they get
the highest score of their head instead, so that protected tokens (sinks, a pinned prompt) still come first.

In the shapes, n is the number of places of the ring.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from jkv.axes import Array, Bool, Float, Int
from jkv.policies.base import Slots


def query_positions(slots: Slots, n: int) -> Int[Array, "B n"]:
    """Position of the query at each place of a ring of ``n``; negative where there has been none yet."""
    newest = slots.newest[:, None]
    return newest - (newest - jnp.arange(n)[None, :]) % n


def observed(slots: Slots, layer: int, n: int) -> Bool[Array, "B k S"]:
    """Slots that hold the newest n tokens."""
    return slots.of_layer(slots.positions, layer) > (slots.newest - n)[:, None, None]


def seen(slots: Slots, layer: int, n: int) -> Bool[Array, "B n k S"]:
    """Which slots each query of the ring may look at: occupied ones, of positions up to its own."""
    query = query_positions(slots, n)[:, :, None, None]
    position = slots.of_layer(slots.positions, layer)[:, None]
    return (position <= query) & slots.occupied[:, None, None, :] & (query >= 0)


def logits(slots: Slots, layer: int) -> Float[Array, "B n K G S"]:
    """q k / sqrt(H) of every query in the ring with every slot, float32, not masked."""
    assert slots.queries is not None  # the policy asked for queries
    assert slots.keys is not None
    q, k = slots.queries[layer].astype(jnp.float32), slots.keys[layer].astype(jnp.float32)
    rows, n, heads, h = q.shape
    grouped = q.reshape(rows, n, k.shape[1], heads // k.shape[1], h)
    return jnp.einsum("BnKGH,BKSH->BnKGS", grouped, k) * h**-0.5


def softmax(scores: Float[Array, "B n K G S"], mask: Bool[Array, "B n k S"]) -> Float[Array, "B n K G S"]:
    """Softmax over the slots in ``mask``; zero elsewhere, and where a query sees nothing."""
    wide = mask[:, :, :, None, :]
    top = jnp.max(jnp.where(wide, scores, -jnp.inf), axis=-1, keepdims=True)
    weight = jnp.where(wide, jnp.exp(scores - jnp.where(jnp.isfinite(top), top, 0.0)), 0.0)
    return weight / jnp.maximum(jnp.sum(weight, axis=-1, keepdims=True), jnp.finfo(jnp.float32).tiny)


def mean_over_queries(weights: Float[Array, "B n K S"], slots: Slots) -> Float[Array, "B K S"]:
    """Mean over the ring's queries; places without a query yet don't count (their weights must be 0)."""
    there = query_positions(slots, weights.shape[1]) >= 0
    return jnp.sum(weights, axis=1) / jnp.sum(there, axis=1).astype(jnp.float32)[:, None, None]


def observed_on_top(scores: Float[Array, "B K S"], slots: Slots, layer: int, n: int) -> Float[Array, "B K S"]:
    """The scores, with those of the newest ``n`` tokens replaced by the highest of the others (0 if there are none)."""
    recent = observed(slots, layer, n)
    others = jnp.where(slots.occupied[:, None, :] & ~recent, scores, -jnp.inf)
    top = jnp.max(others, axis=-1, keepdims=True)
    return jnp.where(recent, jnp.where(jnp.isfinite(top), top, 0.0), scores)


def pool(
    scores: Float[Array, "B K S"],
    slots: Slots,
    layer: int,
    *,
    width: int,
    kind: Literal["max", "avg"],
    leave_out: Bool[Array, "B k S"],
) -> Float[Array, "B K S"]:
    """Maximum or average over neighbours in order of position (stride 1, centred).

    Args:
        scores: of one layer.
        slots: for the positions and the occupied slots.
        layer: which layer.
        width: how many neighbours, the slot itself included. 1 returns the scores as they are.
        kind: 'max' or 'avg'.
        leave_out: slots that don't take part.

    Returns:
        The pooled scores, at the slots they belong to. Slots in ``leave_out``, slots without a token and places beyond
        the ends count as minus infinity in a maximum and as zero in an average.
    """
    if width == 1:
        return scores
    position = jnp.broadcast_to(slots.of_layer(slots.positions, layer), scores.shape)
    fill = -jnp.inf if kind == "max" else 0.0
    kept = jnp.where(leave_out | ~slots.occupied[:, None, :], fill, scores)
    order = None
    if not slots.ascending:
        # Where single slots are overwritten, they are in no order. All are occupied then: only full rows evict.
        order = jnp.argsort(position, axis=-1)
        kept = jnp.take_along_axis(kept, order, axis=-1)
    window, strides = (1, 1, width), (1, 1, 1)
    padding = ((0, 0), (0, 0), ((width - 1) // 2, width // 2))
    if kind == "max":
        pooled = jax.lax.reduce_window(kept, -jnp.inf, jax.lax.max, window, strides, padding)
    else:
        pooled = jax.lax.reduce_window(kept, 0.0, jax.lax.add, window, strides, padding) / width
    return pooled if order is None else jnp.take_along_axis(pooled, jnp.argsort(order, axis=-1), axis=-1)
