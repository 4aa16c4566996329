"""rkv: attention less redundancy (R-KV, arXiv:2505.24133).

    I = maxpool7(mean over the last 8 queries of softmax(max over the group of q k / sqrt(H)))
    R = softmax(mean cosine similarity with the other keys, the newest similar one spared)
    score = lambda I - (1 - lambda) R

The maximum over the group is taken before the softmax, which runs over the slots that are not observed. The source
evicts every 128 tokens (``--retain`` budget - 128) and keeps the last 8 (``--window 8``). Differs from the source's
code in one detail of R: see ``jkv.policies.redundancy``.

lambda is .1 in the paper and .07 by default in its code (Zefan-Cai/R-KV). VaSE's authors run it with .5 on Qwen3-4B
(terarachang/VaSE); on the demo models .5 is worse than .1 (docs/policies_demo.md). So tune it for a model.
"""

import dataclasses

import jax.numpy as jnp

from jkv.axes import Array, Float
from jkv.policies import observed
from jkv.policies.base import Count, Needs, Policy, Share, Slots
from jkv.policies.keep_sets import stack
from jkv.policies.redundancy import redundancy


@dataclasses.dataclass(frozen=True)
class RKV(Policy):
    """No state.

    Attributes:
        lam: lambda, the weight of attention against redundancy.
        queries: how many of the newest queries look.
        width: of the max-pool over attention.
        threshold: cosine above which keys are similar.
    """

    lam: Share = 0.1
    queries: Count = 8
    width: Count = 7
    threshold: Share = 0.5

    name = "rkv"

    @property
    def needs(self) -> Needs:  # pyright: ignore[reportIncompatibleVariableOverride]
        """A ring of the newest queries, and the keys."""
        return Needs(queries=self.queries, keys=True)

    def score(self, state: tuple[()], slots: Slots) -> Float[Array, "B L K S"]:
        """lambda I - (1 - lambda) R, per layer and KV head."""
        del state
        assert slots.keys is not None
        n = self.queries
        layers = []
        for layer, keys in enumerate(slots.keys):
            recent = observed.observed(slots, layer, n)
            mask = observed.seen(slots, layer, n) & ~recent[:, None]
            strongest = jnp.max(observed.logits(slots, layer), axis=3, keepdims=True)
            weights = observed.softmax(strongest, mask)[:, :, :, 0]
            importance = observed.mean_over_queries(weights, slots)
            importance = observed.pool(importance, slots, layer, width=self.width, kind="max", leave_out=recent)
            alike = redundancy(
                keys,
                slots.of_layer(slots.positions, layer),
                slots.occupied,
                self.threshold,
                implementation=slots.implementation,
            )
            score = self.lam * importance - (1 - self.lam) * alike
            layers.append(observed.observed_on_top(score, slots, layer, n))
        return stack(layers)
