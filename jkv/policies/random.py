"""random: at each eviction an independent uniform draw for every token (Random Attention, arXiv:2609.03430).

Score ~ U(0, 1); the prompt is pinned by default. The paper keeps the prompt, draws within each head, and finds that
this matches the strongest scored eviction over four models and six reasoning tasks at about 4 times compression; at 8
to 16 times it collapses. A policy that does not beat it is not worth its cost, so comparisons include it.

Differs from the source by default: one draw is shared by all layers and heads (``--granularity head`` draws for each),
and the window is an eighth of the budget (the source keeps the newest 64: ``--window 64``).
"""

import dataclasses

import jax
import jax.numpy as jnp

from jkv.axes import Array, Float
from jkv.policies.base import Policy, Slots


def uniform(slots: Slots) -> Float[Array, "B l k S"]:
    """A draw from U(0, 1) for every slot and keep set.

    The draw depends on the row's random key (another one at each eviction), the keep set and the token's position. So a
    token gets the same draw whatever slot it is in.
    """
    _, layers, heads, _ = slots.positions.shape

    def draw(key: jax.Array, keep_set: jax.Array, position: jax.Array) -> jax.Array:
        """One number, from a row's key and two integers."""
        return jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, keep_set), position))

    keep_sets = jnp.arange(layers * heads).reshape(layers, heads)
    over_slots = jax.vmap(draw, (None, None, 0))
    over_heads = jax.vmap(over_slots, (None, 0, 0))
    over_layers = jax.vmap(over_heads, (None, 0, 0))
    return jax.vmap(over_layers, (0, None, 0))(slots.rng, keep_sets, slots.positions)


@dataclasses.dataclass(frozen=True)
class Random(Policy):
    """Score ~ U(0, 1). No state, no needs."""

    name = "random"
    pin_prompt = True

    def score(self, state: tuple[()], slots: Slots) -> Float[Array, "B l k S"]:
        """A fresh draw for every slot and keep set."""
        del state
        return uniform(slots)
