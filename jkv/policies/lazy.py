"""lazy: a token that gets attention now and then stays while it may be due again (LazyEviction, arXiv:2506.15969).

    TS  = position of the last query whose attention to the token was above ``alpha`` (at first: the token's own)
    MRI = longest gap between two such queries (at first 0): the paper's maximum recurrence interval
    score = 2 sigmoid(-(t - TS) / MRI) + 2 sigmoid(-1 / MRI),  t the newest position

At MRI = 0 the formula divides by zero; here its limit is taken, which is 1 if t = TS and 0 otherwise. The source evicts
every W steps and keeps the newest W (``--retain`` budget - W, ``--window`` W).

Of a group of query heads the largest weight counts. With granularity shared, attention is averaged over layers and KV
heads before it is compared with ``alpha``.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jkv.axes import Array, Float, Int
from jkv.policies.base import Needs, NewTokens, Policy, Shape, Share, Slots
from jkv.policies.keep_sets import received


@dataclasses.dataclass(frozen=True)
class Lazy(Policy):
    """Attention weights are needed at every step.

    Attributes:
        alpha: a query looks at a token if its attention weight is above this.
    """

    alpha: Share = 1e-4

    name = "lazy"
    needs = Needs(attention=True)

    def init(self, shape: Shape) -> dict[str, Int[Array, "B l k S"]]:
        """TS, named 'last', and MRI, named 'longest'."""
        return {"last": shape.per_slot(jnp.int32), "longest": shape.per_slot(jnp.int32)}

    def observe(self, state: dict[str, Int[Array, "B l k S"]], new: NewTokens) -> dict[str, Int[Array, "B l k S"]]:
        """TS and MRI after the new tokens' queries, one query after the other."""
        last = new.write(state["last"], new.position[:, None, None, :])
        longest = new.write(state["longest"], jnp.zeros((1, 1, 1, 1), jnp.int32))

        def one_query(carry: tuple[Array, Array], at: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
            """TS and MRI [B, l, k, S] after a query with these weights [B, l, k, S] at this position [B]."""
            last, longest = carry
            weights, position = at
            now = position[:, None, None, None]
            looked = weights > self.alpha
            longest = jnp.where(looked, jnp.maximum(longest, now - last), longest)
            return (jnp.where(looked, now, last), longest), None

        by_query = (jnp.moveaxis(received(new, "max"), 1, 0), jnp.moveaxis(new.position, 1, 0))
        (last, longest), _ = jax.lax.scan(one_query, (last, longest), by_query)
        return {"last": last, "longest": longest}

    def score(self, state: dict[str, Int[Array, "B l k S"]], slots: Slots) -> Float[Array, "B l k S"]:
        """The formula above."""
        gap = (slots.newest[:, None, None, None] - state["last"]).astype(jnp.float32)
        longest = state["longest"].astype(jnp.float32)
        some = jnp.maximum(longest, 1.0)
        due = 2 * jax.nn.sigmoid(-gap / some) + 2 * jax.nn.sigmoid(-1 / some)
        return jnp.where(longest > 0, due, (gap == 0).astype(jnp.float32))
