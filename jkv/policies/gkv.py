"""gkv: attention remembered from eviction to eviction, less redundancy (G-KV, arXiv:2512.00504).

    s = mean over the last 16 queries of the maximum over the group of the attention, divided by its largest value
    F = max(decay F, s)                       decay .8
    score = lambda F - (1 - lambda) R         lambda .5; R as in rkv, divided by its largest value

The maximum over the group is taken after the softmax. Defaults are those of the source's scripts (microsoft/G-KV),
which evict every 128 tokens and keep the last 16 (``--retain`` budget - 128, ``--window 16``). Differs from its code: R
is divided by the largest value over all slots, there over those outside the window. With granularity shared, s is
averaged over layers and KV heads, and F is kept once a row.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jkv.axes import Array, Float
from jkv.policies import observed
from jkv.policies.base import Count, Needs, NewTokens, Policy, Shape, Share, Slots
from jkv.policies.keep_sets import reduce_group, stack
from jkv.policies.redundancy import redundancy


@dataclasses.dataclass(frozen=True)
class GKV(Policy):
    """State: F of each slot.

    Attributes:
        lam: lambda, the weight of attention against redundancy.
        decay: what is left of the remembered attention after each eviction.
        queries: how many of the newest queries look.
        threshold: cosine above which keys are similar.
    """

    lam: Share = 0.5
    decay: Share = 0.8
    queries: Count = 16
    threshold: Share = 0.5

    name = "gkv"

    @property
    def needs(self) -> Needs:  # pyright: ignore[reportIncompatibleVariableOverride]
        """A ring of the newest queries, and the keys."""
        return Needs(queries=self.queries, keys=True)

    def init(self, shape: Shape) -> Float[Array, "B l k S"]:
        """Nothing remembered."""
        return shape.per_slot()

    def observe(self, state: Float[Array, "B l k S"], new: NewTokens) -> Float[Array, "B l k S"]:
        """F, with nothing remembered of the new tokens."""
        return new.write(state, jnp.zeros((), jnp.float32)[None, None, None, None])

    def look(self, state: Float[Array, "B l k S"], slots: Slots) -> Float[Array, "B l k S"]:
        """F after this eviction's queries."""
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

    def score(self, state: Float[Array, "B l k S"], slots: Slots) -> Float[Array, "B L K S"]:
        """lambda F - (1 - lambda) R, per layer and KV head."""
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
    """Each head's numbers, divided by the largest of them."""
    return x / jnp.maximum(jnp.max(x, axis=-1, keepdims=True), jnp.finfo(jnp.float32).tiny)
