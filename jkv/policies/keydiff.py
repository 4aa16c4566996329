"""keydiff: keys that point elsewhere than the others stay (KeyDiff, arXiv:2504.15364).

Score = -cos(k, a), a the mean over occupied slots of k / ||k||; keys as cached, after RoPE.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jkv.axes import Array, Bool, Float
from jkv.policies.base import Needs, Policy, Slots
from jkv.policies.keep_sets import stack


@dataclasses.dataclass(frozen=True)
class KeyDiff(Policy):
    """No state, no attention."""

    name = "keydiff"
    needs = Needs(keys=True)

    def score(self, state, slots: Slots):
        del state
        assert slots.keys is not None
        return stack([_difference(k, slots.occupied) for k in slots.keys])


def _difference(k: Float[Array, "B K S H"], occupied: Bool[Array, "B S"]) -> Float[Array, "B K S"]:
    live = occupied[:, None, :, None]
    unit = jnp.where(live, _normalised(jnp.where(live, k.astype(jnp.float32), 0.0)), 0.0)
    anchor = jnp.sum(unit, axis=2) / jnp.sum(occupied, axis=-1).astype(jnp.float32)[:, None, None]
    return -jnp.einsum("BKSH,BKH->BKS", unit, _normalised(anchor))


def _normalised(x: jax.Array) -> jax.Array:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
