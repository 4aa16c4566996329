"""tova: what the last query looks at stays (TOVA, arXiv:2401.06104).

Score = attention of the newest query, mean over all query heads of a layer. With granularity head each layer has its
own keep set, the same for its KV heads, as in the source; with granularity shared the scores are averaged over layers,
too. Unlike in the source, the newest token itself always stays.
"""

import dataclasses

import jax.numpy as jnp

from jkv.axes import Array, Float
from jkv.policies import observed
from jkv.policies.base import Needs, Policy, Slots
from jkv.policies.keep_sets import stack


@dataclasses.dataclass(frozen=True)
class TOVA(Policy):
    """No state. Attention is computed only at an eviction, from the last query."""

    name = "tova"
    needs = Needs(queries=1)

    def score(self, state: tuple[()], slots: Slots) -> Float[Array, "B L K S"]:
        """The last query's attention, the same for all KV heads of a layer."""
        del state
        layers = []
        for layer in range(slots.model.n_layers):
            weights = observed.softmax(observed.logits(slots, layer), observed.seen(slots, layer, 1))
            # A slot holds the same token in all KV heads of a layer, because they all get the same scores. So a mean
            # over KV heads is a mean for one token.
            mean = jnp.mean(weights[:, 0], axis=(1, 2), keepdims=True)[:, :, 0]
            mean = jnp.broadcast_to(mean, (*weights.shape[:1], weights.shape[2], weights.shape[-1]))
            layers.append(observed.observed_on_top(mean, slots, layer, 1))
        return stack(layers)
