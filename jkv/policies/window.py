"""window: the newest tokens stay. Score = position."""

import dataclasses

import jax.numpy as jnp

from jkv.axes import Array, Float
from jkv.policies.base import Policy, Slots


@dataclasses.dataclass(frozen=True)
class Window(Policy):
    """Score = position. No state, no needs."""

    name = "window"

    def score(self, state: tuple[()], slots: Slots) -> Float[Array, "B l k S"]:
        """Each slot's position."""
        del state
        return slots.positions.astype(jnp.float32)
