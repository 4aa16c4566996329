"""echo: tokens that came up again stay. A whole policy of one's own, for --register and for an Engine."""

import dataclasses

import jax.numpy as jnp

from jkv.policies import Needs, Policy, register


@register
@dataclasses.dataclass(frozen=True)
class Echo(Policy):
    """Score = how often a token's id was written again since. weight: of an echo, against a token's recency."""

    weight: float = 1000.0

    name = "echo"
    needs = Needs(tokens=True)

    def init(self, shape):
        return {"id": shape.per_slot(jnp.int32), "born": shape.per_slot(jnp.int32), "echoes": shape.per_slot()}

    def observe(self, state, new):
        id = new.write(state["id"], new.tokens[:, None, None, :])
        born = new.write(state["born"], new.position[:, None, None, :])
        echoes = new.write(state["echoes"], jnp.zeros((1, 1, 1, 1)))
        to_new = lambda x: x[:, None, None, None, :]
        again = (id[..., None] == to_new(new.tokens)) & (born[..., None] < to_new(new.position)) & to_new(new.valid)
        return {"id": id, "born": born, "echoes": echoes + jnp.sum(again, axis=-1, dtype=jnp.float32)}

    def score(self, state, slots):
        return self.weight * state["echoes"] + slots.positions.astype(jnp.float32)
