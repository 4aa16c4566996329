"""h2o: heavy hitters and the newest (H2O, arXiv:2306.14048).

Score = attention mass a key has received so far, summed over queries (its own included), mean over the query heads of a
group. Half of what is kept is the newest (the default window), half the heaviest. With granularity shared the mass is
averaged over layers and KV heads. Attention weights are needed at every step: a second pass over the keys.
"""

import dataclasses
import math

import jax.numpy as jnp

from jkv.policies.base import Needs, NewTokens, Policy, Shape, Slots
from jkv.policies.keep_sets import received


@dataclasses.dataclass(frozen=True)
class H2O(Policy):
    """State: each slot's mass."""

    name = "h2o"
    needs = Needs(attention=True)

    @classmethod
    def default_window(cls, budget: int, *, retain: int | None, ratio: float | None) -> int:
        if ratio is not None:  # window + ratio * (budget - window) is kept: twice the window, rounded up
            return math.floor(ratio * budget / (1 + ratio))
        assert retain is not None
        return retain // 2

    def init(self, shape: Shape):
        return shape.per_slot()

    def observe(self, state, new: NewTokens):
        state = new.write(state, jnp.zeros((1, 1, 1, 1)))
        return state + jnp.sum(received(new, "mean"), axis=1)

    def score(self, state, slots: Slots):
        del slots
        return state
