"""snapkv: what the last queries look at stays, and its neighbours (SnapKV, arXiv:2404.14469), in its decoding form.

Score = pool(mean over the last ``queries`` queries of the group's maximum (after the softmax) of the attention).
Named variants of the literature are options: 64 queries, average-pool 5, mean over the group
(``--options queries=64 pool=avg width=5 group=mean``). Attention is looked at only at an eviction.
"""

import dataclasses
from typing import Literal

from jkv.policies import observed
from jkv.policies.base import Count, Needs, Policy, Slots
from jkv.policies.keep_sets import Group, reduce_group, stack


@dataclasses.dataclass(frozen=True)
class SnapKV(Policy):
    """queries: how many of the newest look.  group: reduction over a KV head's query heads, after the softmax.
    pool, width: over neighbours in order of position; the observed tokens take no part and stay."""

    queries: Count = 8
    group: Group = "max"
    pool: Literal["max", "avg"] = "max"
    width: Count = 7

    name = "snapkv"

    @property
    def needs(self) -> Needs:  # pyright: ignore[reportIncompatibleVariableOverride]
        """A ring of the newest queries."""
        return Needs(queries=self.queries)

    def score(self, state, slots: Slots):
        del state
        n = self.queries
        layers = []
        for layer in range(slots.model.n_layers):
            weights = observed.softmax(observed.logits(slots, layer), observed.seen(slots, layer, n))
            mean = observed.mean_over_queries(reduce_group(weights, self.group), slots)
            recent = observed.observed(slots, layer, n)
            pooled = observed.pool(mean, slots, layer, width=self.width, kind=self.pool, leave_out=recent)
            layers.append(observed.observed_on_top(pooled, slots, layer, n))
        return stack(layers)
