"""gkv: attention remembered over evictions, less redundancy (G-KV, arXiv:2512.00504).

    s = mean over the last 16 queries of the group's maximum (after the softmax) of the attention, over its maximum
    F = max(decay F, s)                       decay .8; remembered from eviction to eviction
    score = lambda F - (1 - lambda) R         lambda .5; R as in rkv, over its maximum

With granularity shared, F is kept once a row, of s averaged over layers and KV heads.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jkv.policies import observed
from jkv.policies.base import Count, Needs, Policy, Shape, Share, Slots
from jkv.policies.keep_sets import reduce_group, stack
from jkv.policies.redundancy import redundancy


@dataclasses.dataclass(frozen=True)
class GKV(Policy):
    """lam: lambda.  decay: of remembered attention.  queries: how many of the newest look.  threshold: as in rkv."""

    lam: Share = 0.5
    decay: Share = 0.8
    queries: Count = 16
    threshold: Share = 0.5

    name = "gkv"

    @property
    def needs(self) -> Needs:  # pyright: ignore[reportIncompatibleVariableOverride]
        """A ring of the newest queries, and the keys."""
        return Needs(queries=self.queries, keys=True)

    def init(self, shape: Shape):
        return shape.per_slot()

    def observe(self, state, new):
        return new.write(state, jnp.zeros((), jnp.float32)[None, None, None, None])

    def look(self, state, slots: Slots):
        layers = []
        for layer in range(slots.model.n_layers):
            weights = observed.softmax(observed.logits(slots, layer), observed.seen(slots, layer, self.queries))
            mean = observed.mean_over_queries(reduce_group(weights, "max"), slots)
            others = ~observed.observed(slots, layer, self.queries)
            layers.append(jnp.where(others, _by_maximum(jnp.where(others, mean, 0.0)), 0.0))
        seen = stack(layers)
        if slots.rule.granularity == "shared":
            seen = jnp.mean(seen, axis=(1, 2), keepdims=True)
        return jnp.maximum(self.decay * state, seen)

    def score(self, state, slots: Slots):
        assert slots.keys is not None
        layers = []
        for layer, keys in enumerate(slots.keys):
            alike = redundancy(
                keys,
                slots.of_layer(slots.positions, layer),
                slots.occupied,
                self.threshold,
                implementation=slots.implementation,
            )
            score = self.lam * slots.of_layer(state, layer) - (1 - self.lam) * _by_maximum(alike)
            layers.append(observed.observed_on_top(score, slots, layer, self.queries))
        return stack(layers)


def _by_maximum(x: jax.Array) -> jax.Array:
    return x / jnp.maximum(jnp.max(x, axis=-1, keepdims=True), jnp.finfo(jnp.float32).tiny)
