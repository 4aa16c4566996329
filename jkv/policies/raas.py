"""raas: the tokens that attention has left alone for longest go (RaaS, arXiv:2502.11147).

At every step t, the half of the occupied slots with the most attention gets the timestamp t. Score = timestamp. The
prompt is pinned by default, as in the source.

Differs from the source: it works on pages of tokens and estimates a page's attention; here each token has its own exact
attention, averaged over the query heads of a group. With granularity shared it is averaged over layers and KV heads,
too, before slots are compared.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jkv.axes import Array, Float, Int
from jkv.policies.base import Needs, NewTokens, Policy, Shape, Slots
from jkv.policies.keep_sets import received


@dataclasses.dataclass(frozen=True)
class RaaS(Policy):
    """State: each slot's timestamp, at first the token's own position. Every step needs attention weights, sorted."""

    name = "raas"
    needs = Needs(attention=True)
    pin_prompt = True

    def init(self, shape: Shape) -> Int[Array, "B l k S"]:
        """Timestamps of empty slots."""
        return shape.per_slot(jnp.int32)

    def observe(self, state: Int[Array, "B l k S"], new: NewTokens) -> Int[Array, "B l k S"]:
        """Timestamps after the new tokens' queries, one query after the other."""
        stamps = new.write(state, new.position[:, None, None, :])

        def one_query(stamps: Array, at: tuple[Array, Array, Array, Array]) -> tuple[Array, None]:
            """Timestamps [B, l, k, S] after a query with these weights, position, occupied slots, and validity."""
            weights, position, occupied, valid = at
            half = (occupied + 1) // 2
            # By rank, not by comparing with the median: XLA may compute the weights a second time with other rounding,
            # and then a weight could differ from itself.
            rank = jnp.argsort(jnp.argsort(weights, axis=-1, descending=True), axis=-1)
            top = (rank < half[:, None, None, None]) & valid[:, None, None, None]
            return jnp.where(top, jnp.maximum(stamps, position[:, None, None, None]), stamps), None

        by_query = (received(new, "mean"), new.position, new.occupied, new.valid)
        stamps, _ = jax.lax.scan(one_query, stamps, jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), by_query))
        return stamps

    def score(self, state: Int[Array, "B l k S"], slots: Slots) -> Float[Array, "B l k S"]:
        """The timestamp."""
        del slots
        return state.astype(jnp.float32)
