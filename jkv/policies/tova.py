"""tova: what the last query looks at stays (TOVA, arXiv:2401.06104).

Score = attention of the newest query, mean over all query heads of a layer; averaged over layers too with granularity
shared. With granularity head each layer has its own keep set, the same for its KV heads. The newest token itself stays.
"""

import dataclasses

import jax.numpy as jnp

from jkv.policies import observed
from jkv.policies.base import Needs, Policy, Slots
from jkv.policies.keep_sets import stack


@dataclasses.dataclass(frozen=True)
class TOVA(Policy):
    """Attention only at an eviction."""

    name = "tova"
    needs = Needs(queries=1)

    def score(self, state, slots: Slots):
        del state
        layers = []
        for layer in range(slots.model.n_layers):
            weights = observed.softmax(observed.logits(slots, layer), observed.seen(slots, layer, 1))
            # KV heads of a layer always hold the same tokens in the same slots: their mean is one over tokens.
            mean = jnp.mean(weights[:, 0], axis=(1, 2), keepdims=True)[:, :, 0]
            mean = jnp.broadcast_to(mean, (*weights.shape[:1], weights.shape[2], weights.shape[-1]))
            layers.append(observed.observed_on_top(mean, slots, layer, 1))
        return stack(layers)
