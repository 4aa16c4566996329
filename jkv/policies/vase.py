"""vase: large values stay, and a random draw keeps the rest diverse (VaSE, arXiv:2606.03928).

Two forms, ``--options form=attnv`` or ``form=dkv``:

attnv: a quarter of the budget goes to the tokens with the largest max(v) - min(v). The rest of what is kept is drawn
without replacement, in proportion to attention: of the last 64 queries, over the slots outside the window, mean over
queries and over the group, average-pooled over 5 neighbours. The draw adds Gumbel noise to log p and takes the
highest, which is the same as drawing one after the other (the Gumbel-top-k trick, arXiv:1903.06059).

dkv: score = ||k G||^2 ||v G||^2, with G a Gaussian H x 20 drawn at each eviction, divided by the sum over the slots. It
needs neither attention nor calibration.

The paper finds that a model starts to loop when the few tokens with abnormally large values are evicted. A loop shows
in a run's truncation rate.

Sinks are 4 by default, and the source evicts every 64 tokens and keeps the newest 64 (``--retain`` budget - 64,
``--window 64``). Differs from the source's code (terarachang/VaSE): there the sinks are part of attnv's quarter, here
they come on top; there each layer draws a G of its own for dkv, here a row's layers share one. With granularity shared,
ranges and attention (or dkv's shares) are averaged over layers and KV heads first.
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
    """No state.

    Attributes:
        form: attnv or dkv.
        queries: attnv: how many of the newest queries look.
        width: attnv: of the average-pool over attention.
        columns: dkv: of the Gaussian.
    """

    form: Literal["attnv", "dkv"] = "attnv"
    queries: Count = 64
    width: Count = 5
    columns: Count = 20

    name = "vase"
    sinks = 4

    @property
    def needs(self) -> Needs:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Keys and values; attnv also a ring of the newest queries."""
        return Needs(queries=self.queries if self.form == "attnv" else 0, keys=True, values=True)

    def score(self, state: tuple[()], slots: Slots) -> Float[Array, "B l k S"]:
        """attnv: per keep set, +inf for the widest values. dkv: per layer and KV head."""
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
        # Gumbel noise comes from uniform draws kept away from 0 and 1, where it is infinite. A slot without attention
        # gets log 1e-30, so that it is drawn only after all others.
        draw = jnp.clip(uniform(slots), 1e-7, 1 - 1e-7)
        drawn = jnp.log(jnp.maximum(attention, 1e-30)) - jnp.log(-jnp.log(draw))
        return jnp.where(widest & free, jnp.inf, drawn)

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
    """Averaged over layers and KV heads where they share a keep set."""
    return jnp.mean(x, axis=(1, 2), keepdims=True) if slots.rule.granularity == "shared" else x


def _highest(x: Float[Array, "B l k S"], n: int, slots: Slots) -> Bool[Array, "B l k S"]:
    """Whether a slot is among the ``n`` highest of its keep set; among equals the newest is."""
    slot = jax.lax.broadcasted_iota(jnp.int32, x.shape, 3)
    *_, ranked = jax.lax.sort((x, slots.positions, slot), dimension=-1, num_keys=2)
    place = jnp.argsort(ranked, axis=-1)
    return place >= x.shape[-1] - n
