"""snapkv: what the last queries look at stays, and its neighbours (SnapKV, arXiv:2404.14469), in a form for decoding.

    score = pool(mean over the last ``queries`` queries of the maximum over the group of the attention)

The maximum over the query heads of a group is taken after the softmax. The source compresses a prompt once; here, as in
R-KV's SnapKV baseline, it is applied again at every eviction while decoding, with that baseline's 8 queries and
max-pool 7 (the baseline takes the maximum before the softmax). kvpress's form is
``--options queries=64 pool=avg width=5 group=mean``.
"""

import dataclasses
from typing import Literal

from jkv.axes import Array, Float
from jkv.policies import observed
from jkv.policies.base import Count, Needs, Policy, Slots
from jkv.policies.keep_sets import Group, reduce_group, stack


@dataclasses.dataclass(frozen=True)
class SnapKV(Policy):
    """No state. Attention is computed only at an eviction, from the last queries.

    Attributes:
        queries: how many of the newest queries look. Their tokens are not pooled, and stay.
        group: how the query heads of a KV head become one, after the softmax.
        pool: how neighbours in order of position become one.
        width: how many neighbours, the slot itself included.
    """

    queries: Count = 8
    group: Group = "max"
    pool: Literal["max", "avg"] = "max"
    width: Count = 7

    name = "snapkv"

    @property
    def needs(self) -> Needs:  # pyright: ignore[reportIncompatibleVariableOverride]
        """A ring of the newest queries."""
        return Needs(queries=self.queries)

    def score(self, state: tuple[()], slots: Slots) -> Float[Array, "B L K S"]:
        """Pooled attention, per layer and KV head."""
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
