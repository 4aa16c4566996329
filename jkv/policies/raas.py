"""raas: tokens last looked at longest ago go; the prompt is pinned by default (RaaS, arXiv:2502.11147).

At every step the slots whose attention is in the top half of the occupied ones get the timestamp t. Score = timestamp.
Attention is exact here (the source estimates it by pages), mean over a group's query heads; with granularity shared it
is averaged over layers and KV heads first. Attention weights are needed at every step, and a sort of them.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jkv.policies.base import Needs, NewTokens, Policy, Shape, Slots
from jkv.policies.keep_sets import received


@dataclasses.dataclass(frozen=True)
class RaaS(Policy):
    """State: each slot's timestamp, at first the token's own position."""

    name = "raas"
    needs = Needs(attention=True)
    pin_prompt = True

    def init(self, shape: Shape):
        return shape.per_slot(jnp.int32)

    def observe(self, state, new: NewTokens):
        stamps = new.write(state, new.position[:, None, None, :])

        def query(stamps, at):
            weights, position, occupied, valid = at
            half = (occupied + 1) // 2
            # By rank, not by comparing with the median: XLA may compute the weights a second time, rounded differently.
            rank = jnp.argsort(jnp.argsort(weights, axis=-1, descending=True), axis=-1)
            top = (rank < half[:, None, None, None]) & valid[:, None, None, None]
            return jnp.where(top, jnp.maximum(stamps, position[:, None, None, None]), stamps), None

        by_query = (received(new, "mean"), new.position, new.occupied, new.valid)
        stamps, _ = jax.lax.scan(query, stamps, jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), by_query))
        return stamps

    def score(self, state, slots: Slots):
        del slots
        return state.astype(jnp.float32)
