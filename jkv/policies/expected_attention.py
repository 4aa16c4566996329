"""expected_attention: what future queries are expected to look at stays (Expected Attention, arXiv:2510.00636).

Queries before RoPE are modelled as Gaussian, with the mean and covariance of the newest ``queries`` of them (those of
the first ``skip`` positions left out). RoPE's rotations for the next ``future`` positions are averaged, and this
average is applied to both: that gives mu and C. Then

    score = mean over the group of softmax(mu k / sqrt(H) + k C k / 2H) * ||v||

with the softmax over the slots of positions from ``skip`` on; the first ``skip`` tokens get the highest score of their
head. Positions are those of the sequence, not slot numbers.

The source (kvpress) takes all queries of a prompt, or those of the last steps of decoding; here it is always the newest
``queries``.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jkv.axes import Array, Float, Int
from jkv.models.rope import frequencies, rotate, rotation
from jkv.policies import observed
from jkv.policies.base import Count, Needs, Policy, Slots
from jkv.policies.keep_sets import stack


@dataclasses.dataclass(frozen=True)
class ExpectedAttention(Policy):
    """No state.

    Attributes:
        queries: how many of the newest queries give mean and covariance.
        future: how many positions ahead the rotation is averaged over.
        skip: how many tokens at the beginning are left out, because their queries and keys tend to be outliers (sinks).
    """

    queries: Count = 128
    future: Count = 512
    skip: int = 4

    name = "expected_attention"

    @property
    def needs(self) -> Needs:  # pyright: ignore[reportIncompatibleVariableOverride]
        """A ring of the newest queries, keys and values."""
        return Needs(queries=self.queries, keys=True, values=True)

    def score(self, state: tuple[()], slots: Slots) -> Float[Array, "B L K S"]:
        """Expected attention times the norm of the value, per layer and KV head."""
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
        """Mean mu and covariance C of the queries to come: those of past queries before RoPE, rotated by the average of
        the next positions' rotations."""
        assert slots.queries is not None
        position = observed.query_positions(slots, self.queries)
        plain = _unrotate(slots.queries[layer].astype(jnp.float32), position, slots)
        counts = (position >= self.skip)[:, :, None, None]
        n = jnp.maximum(jnp.sum(counts.astype(jnp.float32), axis=1), 1.0)
        # ``where`` and not a product with zero: a place of the ring without a query yet may hold NaN.
        mean = jnp.sum(jnp.where(counts, plain, 0.0), axis=1) / n
        centred = jnp.where(counts, plain - mean[:, None], 0.0)
        covariance = jnp.einsum("BnNH,BnNJ->BNHJ", centred, centred) / n[..., None]

        ahead = slots.newest[:, None] + 1 + jnp.arange(self.future)[None]
        cos, sin = (jnp.mean(x, axis=1, keepdims=True) for x in rotation(slots.model, ahead))
        mean = rotate(mean[:, None], cos, sin)[:, 0]
        turn = lambda c: rotate(c.reshape(c.shape[0], 1, -1, c.shape[-1]), cos, sin).reshape(c.shape)
        half = turn(covariance)  # rotates the last axis; the other one is next
        return mean, jnp.swapaxes(turn(jnp.swapaxes(half, 2, 3)), 2, 3)

    def _expected(
        self, mean: Float[Array, "B N H"], covariance: Float[Array, "B N H H"], slots: Slots, layer: int
    ) -> Float[Array, "B K G S"]:
        """Attention that a Gaussian query is expected to give to each slot."""
        assert slots.keys is not None
        k = slots.keys[layer].astype(jnp.float32)
        rows, heads, _, h = k.shape
        mean = mean.reshape(rows, heads, -1, h)
        covariance = covariance.reshape(rows, heads, -1, h, h)
        logit = jnp.einsum("BKGH,BKSH->BKGS", mean, k) * h**-0.5
        logit += jnp.einsum("BKGSJ,BKSJ->BKGS", jnp.einsum("BKSH,BKGHJ->BKGSJ", k, covariance), k) / (2 * h)
        mask = slots.occupied[:, None, :] & (slots.of_layer(slots.positions, layer) >= self.skip)
        return jax.nn.softmax(jnp.where(mask[:, :, None], logit, -jnp.inf), axis=-1)


def _unrotate(q: Float[Array, "B n N H"], position: Int[Array, "B n"], slots: Slots) -> Float[Array, "B n N H"]:
    """Queries before RoPE, from those after it at these positions."""
    cos, sin = rotation(slots.model, position)
    # RoPE multiplies by ``factor``, and so do cos and sin: to undo one and cancel the other takes its square.
    _, factor = frequencies(slots.model)
    return rotate(q, cos / factor**2, -sin / factor**2)
