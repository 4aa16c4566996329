"""expected_attention: what future queries are expected to look at stays (Expected Attention, arXiv:2510.00636).

Queries before RoPE are taken as Gaussian, with the mean mu and the covariance C of the newest ``queries`` ones (those
of the first ``skip`` positions left out). Turned to the next ``future`` positions and averaged over them,

    score = mean over the group of softmax(mu k / sqrt(H) + k C k / 2H) * ||v||

over the slots of positions from ``skip`` on; the first ``skip`` tokens get the highest score of their head. Positions
are those of the sequence. The source takes all queries of a prompt, or those of the last steps of decoding.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jkv.axes import Array, Float
from jkv.models.rope import frequencies, rotate, rotation
from jkv.policies import observed
from jkv.policies.base import Count, Needs, Policy, Slots
from jkv.policies.keep_sets import stack


@dataclasses.dataclass(frozen=True)
class ExpectedAttention(Policy):
    """queries: how many of the newest give mean and covariance.  future: positions ahead.  skip: sinks left out."""

    queries: Count = 128
    future: Count = 512
    skip: int = 4

    name = "expected_attention"

    @property
    def needs(self) -> Needs:  # pyright: ignore[reportIncompatibleVariableOverride]
        """A ring of the newest queries, keys and values."""
        return Needs(queries=self.queries, keys=True, values=True)

    def score(self, state, slots: Slots):
        del state
        assert slots.values is not None
        layers = []
        for layer, values in enumerate(slots.values):
            mean, covariance = self._future_queries(slots, layer)
            expected = self._expected(mean, covariance, slots, layer)
            size = jnp.linalg.norm(values.astype(jnp.float32), axis=-1)
            sink = slots.of_layer(slots.positions, layer) < self.skip
            score = jnp.mean(expected, axis=2) * size
            others = jnp.where(sink | ~slots.occupied[:, None, :], -jnp.inf, score)
            layers.append(jnp.where(sink, jnp.max(others, axis=-1, keepdims=True), score))
        return stack(layers)

    def _future_queries(self, slots: Slots, layer: int) -> tuple[Float[Array, "B N H"], Float[Array, "B N H H"]]:
        """Mean and covariance of queries before RoPE, averaged over the rotations of the next positions."""
        assert slots.queries is not None
        position = observed.query_positions(slots, self.queries)
        plain = _unrotate(slots.queries[layer].astype(jnp.float32), position, slots)
        counts = (position >= self.skip)[:, :, None, None]
        n = jnp.maximum(jnp.sum(counts.astype(jnp.float32), axis=1), 1.0)
        # Not a product with zero: a place of the ring that holds no query yet may hold anything.
        mean = jnp.sum(jnp.where(counts, plain, 0.0), axis=1) / n
        centred = jnp.where(counts, plain - mean[:, None], 0.0)
        covariance = jnp.einsum("BnNH,BnNJ->BNHJ", centred, centred) / n[..., None]

        ahead = slots.newest[:, None] + 1 + jnp.arange(self.future)[None]
        cos, sin = (jnp.mean(x, axis=1, keepdims=True) for x in rotation(slots.model, ahead))
        mean = rotate(mean[:, None], cos, sin)[:, 0]
        turn = lambda c: rotate(c.reshape(c.shape[0], 1, -1, c.shape[-1]), cos, sin).reshape(c.shape)
        half = turn(covariance)  # the last axis; then the other
        return mean, jnp.swapaxes(turn(jnp.swapaxes(half, 2, 3)), 2, 3)

    def _expected(self, mean, covariance, slots: Slots, layer: int) -> Float[Array, "B K G S"]:
        assert slots.keys is not None
        k = slots.keys[layer].astype(jnp.float32)
        rows, heads, _, h = k.shape
        mean = mean.reshape(rows, heads, -1, h)
        covariance = covariance.reshape(rows, heads, -1, h, h)
        logit = jnp.einsum("BKGH,BKSH->BKGS", mean, k) * h**-0.5
        logit += jnp.einsum("BKGSJ,BKSJ->BKGS", jnp.einsum("BKSH,BKGHJ->BKGSJ", k, covariance), k) / (2 * h)
        mask = slots.occupied[:, None, :] & (slots.of_layer(slots.positions, layer) >= self.skip)
        return jax.nn.softmax(jnp.where(mask[:, :, None], logit, -jnp.inf), axis=-1)


def _unrotate(q: Float[Array, "B n N H"], position: jax.Array, slots: Slots) -> Float[Array, "B n N H"]:
    cos, sin = rotation(slots.model, position)
    _, factor = frequencies(slots.model)  # cos and sin carry it once; undoing it takes two
    return rotate(q, cos / factor**2, -sin / factor**2)
