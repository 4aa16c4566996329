"""Samplers: small frozen dataclasses from logits to tokens, one random key a row.

The order is the reference's (DynTS): temperature, then top-p, then top-k. top-p keeps a token while the tokens that
are strictly more likely hold less than ``top_p`` of the mass of the *whole* vocabulary; top-k then keeps at most k of
those. No vocabulary is sorted: with top-k on, ``lax.top_k`` and the full normaliser decide both; with top-k off, the
nucleus is found by bisection on the probability.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jkv.axes import Array, Float, Int
from jkv.ops.rows import row_sum


@runtime_checkable
class Sampler(Protocol):
    """Hashable; called inside the jitted step."""

    def __call__(self, logits: Float[Array, "B V"], keys: jax.Array, /) -> Int[Array, " B"]: ...


@dataclasses.dataclass(frozen=True)
class Greedy:
    """The most likely token; the lowest id where several are equal."""

    def __call__(self, logits: Float[Array, "B V"], keys: jax.Array) -> Int[Array, " B"]:
        del keys
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class TopPTopK:
    """Draw from softmax(logits / temperature) cut by top-p, then by top-k (0: off).

    Tokens of exactly equal probability on the edge: top-p keeps all of them, top-k the lowest ids.
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

    def __call__(self, logits: Float[Array, "B V"], keys: jax.Array) -> Int[Array, " B"]:
        scaled = logits.astype(jnp.float32) / self.temperature
        scaled -= jnp.max(scaled, axis=-1, keepdims=True)
        log_p = scaled - jnp.log(row_sum(jnp.exp(scaled)))[:, None]
        if 0 < self.top_k < log_p.shape[-1]:
            best, ids = jax.lax.top_k(log_p, self.top_k)  # descending; the lowest id first among equals
            p = jnp.exp(best)
            # Equal probabilities share one "mass above": they stand or fall together.
            above = row_sum(jnp.where(p[:, None, :] > p[:, :, None], p[:, None, :], 0.0))
            choice = _draw(jnp.where(above < self.top_p, best, -jnp.inf), keys)
            return jnp.take_along_axis(ids, choice[:, None], axis=-1)[:, 0].astype(jnp.int32)
        if self.top_p < 1:
            log_p = jnp.where(_nucleus(jnp.exp(log_p), self.top_p), log_p, -jnp.inf)
        return _draw(log_p, keys)


def make_sampler(temperature: float, top_p: float, top_k: int) -> Sampler:
    """Greedy at temperature 0, else the reference's order of cuts."""
    return Greedy() if temperature == 0 else TopPTopK(temperature, top_p, top_k)


def _draw(log_p: Float[Array, "B V"], keys: jax.Array) -> Int[Array, " B"]:
    return jax.vmap(jax.random.categorical)(keys, log_p).astype(jnp.int32)


def _nucleus(p: Float[Array, "B V"], top_p: float) -> jax.Array:
    """Mask of the tokens whose strictly more likely rivals hold less than ``top_p`` together.

    "Mass above t" falls as t grows, so the smallest admitted probability is found by bisection. Positive floats are
    ordered like their bit patterns: 31 halvings are exact, with no sort of V.
    """
    bits = jax.lax.bitcast_convert_type(p, jnp.int32)

    def halve(_, edges):
        low, high = edges  # mass above `high` is below top_p; above `low` it isn't (or low is -1)
        middle = low + (high - low) // 2
        above = row_sum(jnp.where(bits > middle[:, None], p, 0.0))
        inside = above < top_p
        return jnp.where(inside, low, middle), jnp.where(inside, middle, high)

    rows = p.shape[0]
    top = jnp.full((rows,), jnp.float32(1).view(jnp.int32) + 1, jnp.int32)
    _, high = jax.lax.fori_loop(0, 31, halve, (jnp.full((rows,), -1, jnp.int32), top))
    return bits >= high[:, None]
