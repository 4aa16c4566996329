"""random: an independent uniform draw for every token at each eviction, the prompt pinned by default.

In comparisons of 2026 a very strong baseline: anything that can't beat it isn't worth its cost.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jkv.axes import Array, Float
from jkv.policies.base import Policy, Slots


def uniform(slots: Slots) -> Float[Array, "B l k S"]:
    """U(0, 1) for every slot and keep set, from (row's key, eviction, keep set, position): the same whatever slot a
    token sits in."""
    _, layers, heads, _ = slots.positions.shape

    def draw(key: jax.Array, keep_set: jax.Array, position: jax.Array) -> jax.Array:
        return jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, keep_set), position))

    keep_sets = jnp.arange(layers * heads).reshape(layers, heads)
    over_slots = jax.vmap(draw, (None, None, 0))
    over_heads = jax.vmap(over_slots, (None, 0, 0))
    over_layers = jax.vmap(over_heads, (None, 0, 0))
    return jax.vmap(over_layers, (0, None, 0))(slots.rng, keep_sets, slots.positions)


@dataclasses.dataclass(frozen=True)
class Random(Policy):
    """Score = U(0, 1)."""

    name = "random"
    pin_prompt = True

    def score(self, state, slots: Slots):
        del state
        return uniform(slots)
