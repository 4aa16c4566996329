"""vase: the values decide, and chance (VaSE, arXiv:2606.03928), in two forms (``--options form=attnv`` or ``dkv``).

attnv: besides the sinks, a quarter of the budget goes to the tokens whose values range widest, max(v) - min(v) (in the
source's code the sinks are part of that quarter); the rest of what is kept is drawn without replacement, in proportion
to attention: of the last 64 queries, over the slots outside the window, mean over queries and over the group,
average-pooled over 5 neighbours. Drawing is by Gumbel noise: the highest log p + G are such a draw.

dkv: score = ||k G||^2 ||v G||^2, G a Gaussian H x 20 drawn at each eviction; as shares of their sum over the slots.
Neither attention nor calibration.

Sinks are 4 by default. The source evicts every 64 tokens (``--retain`` budget - 64, ``--window 64``). With granularity
shared, ranges and attention (or shares) are averaged over layers and KV heads before the draw. High ranges alone make
models loop: watch truncation.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from jkv.axes import Array, Bool, Float
from jkv.policies import observed
from jkv.policies.base import Count, Needs, Policy, Slots
from jkv.policies.keep_sets import reduce_group, stack
from jkv.policies.random import uniform


@dataclasses.dataclass(frozen=True)
class VaSE(Policy):
    """form: attnv or dkv.  queries, width: of attnv's attention and its average-pool.  columns: of dkv's Gaussian."""

    form: Literal["attnv", "dkv"] = "attnv"
    queries: Count = 64
    width: Count = 5
    columns: Count = 20

    name = "vase"
    sinks = 4

    @property
    def needs(self) -> Needs:  # pyright: ignore[reportIncompatibleVariableOverride]
        """attnv: a ring of the newest queries, keys and values; dkv: keys and values."""
        return Needs(queries=self.queries if self.form == "attnv" else 0, keys=True, values=True)

    def score(self, state, slots: Slots):
        del state
        return self._attnv(slots) if self.form == "attnv" else self._dkv(slots)

    def _attnv(self, slots: Slots) -> Float[Array, "B l k S"]:
        assert slots.values is not None
        spread, attention = [], []
        for layer, values in enumerate(slots.values):
            wide = values.astype(jnp.float32)
            spread.append(jnp.max(wide, axis=-1) - jnp.min(wide, axis=-1))
            recent = observed.observed(slots, layer, slots.rule.window)
            mask = observed.seen(slots, layer, self.queries) & ~recent[:, None]
            weights = observed.softmax(observed.logits(slots, layer), mask)
            mean = observed.mean_over_queries(reduce_group(weights, "mean"), slots)
            attention.append(observed.pool(mean, slots, layer, width=self.width, kind="avg", leave_out=recent))
        spread, attention = (_on_keep_sets(stack(x), slots) for x in (spread, attention))
        free = slots.occupied[:, None, None, :] & ~slots.protected
        widest = _highest(jnp.where(free, spread, -jnp.inf), slots.rule.budget // 4, slots)
        # Gumbel noise from uniform draws that never are exactly 0 or 1; a share of 0 is never drawn before others.
        draw = jnp.clip(uniform(slots), 1e-7, 1 - 1e-7)
        lot = jnp.log(jnp.maximum(attention, 1e-30)) - jnp.log(-jnp.log(draw))
        return jnp.where(widest & free, jnp.inf, lot)

    def _dkv(self, slots: Slots) -> Float[Array, "B L K S"]:
        assert slots.keys is not None
        assert slots.values is not None
        h = slots.model.head_dim
        gaussian = jax.vmap(lambda key: jax.random.normal(key, (h, self.columns)))(slots.rng) * self.columns**-0.5
        layers = []
        for k, v in zip(slots.keys, slots.values, strict=True):
            sizes = []
            for x in (k, v):
                sketch = jnp.einsum("BKSH,BHC->BKSC", x.astype(jnp.float32), gaussian)
                sizes.append(jnp.sum(sketch * sketch, axis=-1))
            product = jnp.where(slots.occupied[:, None, :], sizes[0] * sizes[1], 0.0)
            layers.append(product / jnp.sum(product, axis=-1, keepdims=True))
        return stack(layers)


def _on_keep_sets(x: Float[Array, "B L K S"], slots: Slots) -> Float[Array, "B l k S"]:
    return jnp.mean(x, axis=(1, 2), keepdims=True) if slots.rule.granularity == "shared" else x


def _highest(x: Float[Array, "B l k S"], n: int, slots: Slots) -> Bool[Array, "B l k S"]:
    """The ``n`` highest; among equals the newest."""
    slot = jax.lax.broadcasted_iota(jnp.int32, x.shape, 3)
    *_, ranked = jax.lax.sort((x, slots.positions, slot), dimension=-1, num_keys=2)
    place = jnp.argsort(ranked, axis=-1)
    return place >= x.shape[-1] - n
