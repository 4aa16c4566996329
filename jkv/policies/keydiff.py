"""keydiff: keys that point in another direction than the rest stay (KeyDiff, arXiv:2504.15364).

Score = -cos(k, a), where a is the mean over occupied slots of k / ||k||; keys as cached, after RoPE. The source applies
this to a prompt block by block; here it is applied at every eviction while decoding.
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

    def score(self, state: tuple[()], slots: Slots) -> Float[Array, "B L K S"]:
        """Minus the cosine of each key with the mean direction, per layer and KV head."""
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
