"""Samplers: small frozen dataclasses that draw a token from each row's logits, with one random key a row.

The order is that of DynTS's code: temperature, then top-p, then top-k (arXiv:2601.18383; `logits_to_tokens` in
inference/base.py of github.com/Robin930/DynTS). transformers' ``generate`` applies top-k before top-p, which is then a
share of what top-k left. Here top-p keeps a token if the tokens that are strictly more likely hold less than ``top_p``
of the mass of the whole vocabulary; of those tokens top-k then keeps at most k.

The vocabulary is not sorted. With top-k on, the k best tokens, with their probabilities over the whole vocabulary,
decide both cuts. With top-k off, the smallest probability that top-p keeps is found by bisection.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Key

from jkv.axes import Array, Bool, Float, Int
from jkv.ops.rows import row_sum


@runtime_checkable
class Sampler(Protocol):
    """Draws one token a row. It is called inside the jitted decode step and must be hashable: programs are compiled for
    it (`jkv.engine.state.DecodeSetup`).

    Args:
        logits: scores over the vocabulary, not normalised.
        keys: each row's random key. A row's token must depend on its own logits and key only.

    Returns:
        Token ids, int32.
    """

    def __call__(self, logits: Float[Array, "B V"], keys: Key[Array, " B"], /) -> Int[Array, " B"]: ...


@dataclasses.dataclass(frozen=True)
class Greedy:
    """The most likely token; the lowest id where several are equal."""

    def __call__(self, logits: Float[Array, "B V"], keys: Key[Array, " B"]) -> Int[Array, " B"]:
        del keys
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class TopPTopK:
    """Draw from softmax(logits / temperature), cut by top-p, then by top-k.

    Where tokens of exactly equal probability lie on the edge of a cut, top-p keeps all of them, top-k those of the
    lowest ids.

    Attributes:
        temperature: positive.
        top_p: share of the probability mass, in (0, 1]; 1 switches this cut off.
        top_k: how many tokens may stay, at least 0; 0 switches this cut off.

    Raises:
        ValueError: a field is out of its range.
    """

    temperature: float
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self):
        if not self.temperature > 0:
            raise ValueError(f"temperature {self.temperature} must be positive; 0 is Greedy")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p} must be in (0, 1]")
        if self.top_k < 0:
            raise ValueError(f"top_k {self.top_k} must be 0 (off) or positive")

    def __call__(self, logits: Float[Array, "B V"], keys: Key[Array, " B"]) -> Int[Array, " B"]:
        scaled = logits.astype(jnp.float32) / self.temperature
        scaled -= jnp.max(scaled, axis=-1, keepdims=True)
        log_p = scaled - jnp.log(row_sum(jnp.exp(scaled)))[:, None]
        if 0 < self.top_k < log_p.shape[-1]:
            best, ids = jax.lax.top_k(log_p, self.top_k)  # descending; the lowest id first among equals
            p = jnp.exp(best)
            # Tokens of equal probability have the same mass above them, so top-p keeps all of them or none.
            above = row_sum(jnp.where(p[:, None, :] > p[:, :, None], p[:, None, :], 0.0))
            choice = _draw(jnp.where(above < self.top_p, best, -jnp.inf), keys)
            return jnp.take_along_axis(ids, choice[:, None], axis=-1)[:, 0].astype(jnp.int32)
        if self.top_p < 1:
            log_p = jnp.where(_nucleus(jnp.exp(log_p), self.top_p), log_p, -jnp.inf)
        return _draw(log_p, keys)


def make_sampler(temperature: float, top_p: float, top_k: int) -> Sampler:
    """The sampler of a run.

    Args:
        temperature: 0 is greedy: the most likely token, and the cuts don't matter.
        top_p: share of the probability mass, in (0, 1]; 1 is off.
        top_k: how many tokens may stay; 0 is off. Applied after top-p, as DynTS's code does.

    Raises:
        ValueError: a negative temperature; or, if it is positive, top_p or top_k out of its range.
    """
    return Greedy() if temperature == 0 else TopPTopK(temperature, top_p, top_k)


def _draw(log_p: Float[Array, "B V"], keys: Key[Array, " B"]) -> Int[Array, " B"]:
    """A place on the last axis, drawn from exp(log_p), which need not sum to 1."""
    return jax.vmap(jax.random.categorical)(keys, log_p).astype(jnp.int32)


def _nucleus(p: Float[Array, "B V"], top_p: float) -> Bool[Array, "B V"]:
    """Mask of the tokens for which all strictly more likely tokens together hold less than ``top_p``.

    The mass of the tokens above a probability t falls as t grows, so the smallest probability that stays is found by
    bisection. Floats that are not negative are ordered like their bit patterns, so 31 halvings find it exactly.
    """
    bits = jax.lax.bitcast_convert_type(p, jnp.int32)

    def halve(
        _: jax.Array | int, edges: tuple[Int[Array, " B"], Int[Array, " B"]]
    ) -> tuple[Int[Array, " B"], Int[Array, " B"]]:
        """One step of the bisection, on bit patterns."""
        low, high = edges  # the mass above `high` is less than top_p; that above `low` isn't, unless low is still -1
        middle = low + (high - low) // 2
        above = row_sum(jnp.where(bits > middle[:, None], p, 0.0))
        inside = above < top_p
        return jnp.where(inside, low, middle), jnp.where(inside, middle, high)

    rows = p.shape[0]
    top = jnp.full((rows,), jnp.float32(1).view(jnp.int32) + 1, jnp.int32)
    _, high = jax.lax.fori_loop(0, 31, halve, (jnp.full((rows,), -1, jnp.int32), top))
    return bits >= high[:, None]
