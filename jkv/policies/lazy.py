"""lazy: tokens that are looked at now and then stay as long as they may be due again (LazyEviction, arXiv:2506.15969).

    TS  = position of the last query whose attention to the token was above ``alpha`` (at first: the token's own)
    MRI = longest gap between two such queries (at first 0)
    score = 2 sigmoid(-(t - TS) / MRI) + 2 sigmoid(-1 / MRI),  t the newest position

MRI = 0 is taken as its limit: 0, plus 1 if t = TS. The source evicts every ``window`` steps (``--retain`` budget -
window). Of a group of query heads the strongest counts; with granularity shared, attention is averaged over layers and
KV heads first. Attention weights are needed at every step.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jkv.policies.base import Needs, NewTokens, Policy, Shape, Share, Slots
from jkv.policies.keep_sets import received


@dataclasses.dataclass(frozen=True)
class Lazy(Policy):
    """alpha: attention that counts as being looked at."""

    alpha: Share = 1e-4

    name = "lazy"
    needs = Needs(attention=True)

    def init(self, shape: Shape):
        return {"last": shape.per_slot(jnp.int32), "longest": shape.per_slot(jnp.int32)}

    def observe(self, state, new: NewTokens):
        last = new.write(state["last"], new.position[:, None, None, :])
        longest = new.write(state["longest"], jnp.zeros((1, 1, 1, 1), jnp.int32))

        def query(carry, at):
            last, longest = carry
            weights, position = at
            now = position[:, None, None, None]
            looked = weights > self.alpha
            longest = jnp.where(looked, jnp.maximum(longest, now - last), longest)
            return (jnp.where(looked, now, last), longest), None

        by_query = (jnp.moveaxis(received(new, "max"), 1, 0), jnp.moveaxis(new.position, 1, 0))
        (last, longest), _ = jax.lax.scan(query, (last, longest), by_query)
        return {"last": last, "longest": longest}

    def score(self, state, slots: Slots):
        gap = (slots.newest[:, None, None, None] - state["last"]).astype(jnp.float32)
        longest = state["longest"].astype(jnp.float32)
        some = jnp.maximum(longest, 1.0)
        due = 2 * jax.nn.sigmoid(-gap / some) + 2 * jax.nn.sigmoid(-1 / some)
        return jnp.where(longest > 0, due, (gap == 0).astype(jnp.float32))
