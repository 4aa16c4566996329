"""h2o: heavy hitters and the newest tokens stay (H2O, arXiv:2306.14048).

Score = the attention mass that a key has received so far: the sum over all queries, its own token's included, of the
mean over the query heads of a group. Half of what is kept is the newest (the default window), half the heaviest.

The source has as many KV heads as query heads; the mean over a group is how grouped-query attention is read here. With
granularity shared, attention is averaged over layers and KV heads before it is summed.
"""

import dataclasses
import math

import jax.numpy as jnp

from jkv.axes import Array, Float
from jkv.policies.base import Needs, NewTokens, Policy, Shape, Slots
from jkv.policies.keep_sets import received


@dataclasses.dataclass(frozen=True)
class H2O(Policy):
    """State: each slot's mass. Attention weights are needed at every step."""

    name = "h2o"
    needs = Needs(attention=True)

    @classmethod
    def default_window(cls, budget: int, *, retain: int | None, ratio: float | None) -> int:
        """Half of what is kept, rounded down."""
        if ratio is not None:  # window + floor(ratio * (budget - window)) slots are kept: twice the window, or one more
            return math.floor(ratio * budget / (1 + ratio))
        assert retain is not None
        return retain // 2

    def init(self, shape: Shape) -> Float[Array, "B l k S"]:
        """No mass."""
        return shape.per_slot()

    def observe(self, state: Float[Array, "B l k S"], new: NewTokens) -> Float[Array, "B l k S"]:
        """Each slot's mass, with what the new tokens' queries gave to it."""
        state = new.write(state, jnp.zeros((1, 1, 1, 1)))
        return state + jnp.sum(received(new, "mean"), axis=1)

    def score(self, state: Float[Array, "B l k S"], slots: Slots) -> Float[Array, "B l k S"]:
        """The mass."""
        del slots
        return state
