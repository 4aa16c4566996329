"""window: the newest tokens stay."""

import dataclasses

import jax.numpy as jnp

from jkv.policies.base import Policy, Slots


@dataclasses.dataclass(frozen=True)
class Window(Policy):
    """Score = position."""

    name = "window"

    def score(self, state, slots: Slots):
        del state
        return slots.positions.astype(jnp.float32)
