"""From attention per query head to one number per KV head, or per keep set.

A keep set is the set of slots that an eviction keeps: one a row (granularity shared), or one for each layer and KV head
(granularity head).
"""

from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp

from jkv.axes import Array, Float
from jkv.policies.base import NewTokens

Group = Literal["mean", "max"]


def reduce_group(weights: Float[Array, "*batch G S"], group: Group) -> Float[Array, "*batch S"]:
    """One weight a slot, from the attention weights (after the softmax) of the query heads that share a KV head."""
    return jnp.mean(weights, axis=-2) if group == "mean" else jnp.max(weights, axis=-2)


def stack(per_layer: Sequence[Float[Array, "B K S"]]) -> Float[Array, "B L K S"]:
    """One array of all layers' scores."""
    return jnp.stack(list(per_layer), axis=1)


def received(new: NewTokens, group: Group) -> Float[Array, "B T l k S"]:
    """The attention that each slot got from each of the new tokens, per keep set.

    Args:
        new: the tokens; the policy must have asked for ``attention``.
        group: how the query heads of a KV head become one.

    Returns:
        Attention weights, averaged over layers and KV heads where the keep set is shared; 0 from tokens that are not
        valid.
    """
    assert new.attention is not None  # the policy asked for it
    n_kv_heads = new.model.n_kv_heads
    layers = []
    for weights in new.attention:
        rows, heads, tokens, slots = weights.shape
        grouped = weights.reshape(rows, n_kv_heads, heads // n_kv_heads, tokens, slots)
        layers.append(reduce_group(jnp.moveaxis(grouped, 2, 3), group))  # [B, K, T, S]
    stacked = jnp.moveaxis(jnp.stack(layers, axis=1), 3, 1)  # [B, T, L, K, S]
    if new.slot.shape[1:3] == (1, 1):
        stacked = jnp.mean(stacked, axis=(2, 3), keepdims=True)
    return jnp.where(new.valid[:, :, None, None, None], stacked, 0.0)
