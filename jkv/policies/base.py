"""The policy interface, and the one place that selects what stays.

A policy only scores: state in, scores out, over pytrees. It declares what it needs, and the step computes only that.
Protection (sinks, pinned prompt, window), the tie rule and the number of kept slots are the same for all policies and
live in ``select``.
"""

import dataclasses
import math
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from jkv.axes import Array, Bool, Float, Int
from jkv.errors import UserError
from jkv.pytree import pytree

Granularity = Literal["shared", "head"]


@dataclasses.dataclass(frozen=True)
class Needs:
    """What the step has to compute for a policy. Nothing is free; the default asks for nothing.

    queries: how many of the newest queries (after RoPE) to remember.  attention: each step's attention weights.
    keys, values: the buffer, when scoring.  hidden: final-norm hidden state of each token.  tokens: its id.
    """

    queries: int = 0
    attention: bool = False
    keys: bool = False
    values: bool = False
    hidden: bool = False
    tokens: bool = False


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes a policy's state is built from: rows B, slots S, keep sets l x k, and the model's L, N, K, H, D."""

    rows: int
    slots: int
    keep_layers: int
    keep_heads: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_model: int

    def per_slot(self, dtype=jnp.float32) -> Float[Array, "B l k S"] | Int[Array, "B l k S"]:
        """Zeros with one entry a slot and keep set: what a per-slot state leaf looks like."""
        return jnp.zeros((self.rows, self.keep_layers, self.keep_heads, self.slots), dtype)


@pytree
class NewTokens:
    """Tokens just inserted: the prompt at prefill (B = 1, T its bucket), else one a row (T = 1).

    Fields a policy did not ask for are None. ``attention`` and ``queries`` are per layer.
    """

    position: Int[Array, "B T"]
    slot: Int[Array, "B l k T"]
    valid: Bool[Array, "B T"]
    tokens: Int[Array, "B T"] | None = None
    hidden: Float[Array, "B T D"] | None = None
    attention: tuple[Float[Array, "B N T S"], ...] | None = None

    def write(self, leaf: Array, values: Array) -> Array:
        """``leaf`` [B, l, k, S] with ``values`` [B, l, k, T] at the new tokens' slots (broadcast over l and k)."""
        slots = leaf.shape[-1]
        at = jnp.where(self.valid[:, None, None, :], self.slot, slots)  # out of range: dropped
        values = jnp.broadcast_to(values, at.shape).astype(leaf.dtype)
        put = lambda row, index, value: row.at[index].set(value, mode="drop")
        return jax.vmap(jax.vmap(jax.vmap(put)))(leaf, at, values)


@pytree
class Slots:
    """What a policy sees when it scores. Fields it did not ask for are None; keys, values, queries are per layer."""

    positions: Int[Array, "B l k S"]
    occupied: Bool[Array, "B S"]
    length: Int[Array, " B"]
    newest: Int[Array, " B"]
    prompt_length: Int[Array, " B"]
    evicting: Bool[Array, " B"]
    rng: jax.Array  # [B] random keys, fresh at every eviction
    tokens: Int[Array, "B l k S"] | None = None
    keys: tuple[Float[Array, "B K S H"], ...] | None = None
    values: tuple[Float[Array, "B K S H"], ...] | None = None
    queries: tuple[Float[Array, "B n N H"], ...] | None = None


class Policy:
    """Base of every policy: subclass, set ``name`` (and ``needs``), implement ``score``.

    Subclasses are frozen dataclasses: their fields are the policy's options, and they are hashable, so a policy can be
    a static argument of the jitted step.
    """

    name: ClassVar[str]
    needs: ClassVar[Needs] = Needs()
    pin_prompt: ClassVar[bool] = False  # default of the flag
    sinks: ClassVar[int] = 0  # default of the flag
    evicts: ClassVar[bool] = True

    def init(self, shape: Shape) -> Any:
        """A pytree with leading axis B on every leaf. Leaves of shape [B, l, k, S] follow their slots when the buffer
        is compacted."""
        return ()

    def observe(self, state: Any, new: NewTokens) -> Any:
        """Called once for a prompt and after every token."""
        del new
        return state

    def score(self, state: Any, slots: Slots) -> Float[Array, "B l k S"]:
        """Higher stays longer. [B, 1, 1, S], or [B, L, K, S] for a score per layer and KV head."""
        raise NotImplementedError(f"policy {type(self).__name__} has no score")


@dataclasses.dataclass(frozen=True)
class Retention:
    """The budget words of one run: how much stays, and what is never evicted.

    budget: slots a row owns (S).  retain: slots occupied right after an eviction.  window: the newest tokens.
    sinks: the oldest.  pin_prompt: the prompt.  granularity: one keep set a row, or one a layer and KV head.
    """

    budget: int
    retain: int
    window: int = 0
    sinks: int = 0
    pin_prompt: bool = False
    granularity: Granularity = "shared"

    def __post_init__(self):
        if self.budget < 1:
            raise UserError(f"a budget of {self.budget} slots holds nothing", where="--budget", mend="give at least 1")
        if not 1 <= self.retain <= self.budget:
            mend = f"give 1 to {self.budget - 1}"
            raise UserError(f"retain {self.retain} is outside 1..{self.budget}", where="--retain", mend=mend)
        for name in ("window", "sinks"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}", where=f"--{name}", mend="give 0 or more")
        if self.sinks + self.window > self.retain:
            raise UserError(
                f"{self.sinks} sinks + window {self.window} = {self.sinks + self.window} don't fit the {self.retain} "
                f"slots kept of a budget of {self.budget}",
                where="--window",
                mend="raise --budget or --retain, or lower --window or --sinks",
            )

    @property
    def one_out(self) -> bool:
        """One token out, one in: the evicted slot is overwritten and nothing moves."""
        return self.retain == self.budget - 1

    def check_prompt(self, length: int, where: str) -> None:
        """Raise UserError if a prompt of ``length`` tokens, or what must be protected with it, does not fit."""
        if length > self.budget:
            raise UserError(
                f"the prompt has {length} tokens, the budget {self.budget} slots", where=where, mend="raise --budget"
            )
        protected = max(length if self.pin_prompt else 0, self.sinks) + self.window
        if self.retain < self.budget and protected > self.retain:
            what = f"prompt of {length}" if self.pin_prompt else f"{self.sinks} sinks"
            raise UserError(
                f"the pinned {what} + window {self.window} = {protected} tokens don't fit the {self.retain} slots kept "
                f"of a budget of {self.budget}",
                where=where,
                mend="raise --budget or --retain, lower --window, or use --no-pin-prompt",
            )


def retain_by_ratio(budget: int, window: int, ratio: float) -> int:
    """DynTS's rule: window + floor(ratio * (n - window)); n, the slots occupied at the eviction, is the budget."""
    return window + math.floor(ratio * max(budget - window, 0))


def priority(
    scores: Float[Array, "B score_layers score_heads S"], slots: Slots, rule: Retention
) -> Float[Array, "B l k S"]:
    """The policy's scores on the run's keep sets, with protected slots at +inf and dead ones at -inf."""
    if rule.granularity == "shared" and scores.shape[1:3] != (1, 1):
        scores = jnp.mean(scores, axis=(1, 2), keepdims=True)
    scores = jnp.broadcast_to(scores, slots.positions.shape).astype(jnp.float32)
    position = slots.positions
    protected = position > (slots.newest - rule.window)[:, None, None, None]
    protected |= position < rule.sinks
    if rule.pin_prompt:
        protected |= position < slots.prompt_length[:, None, None, None]
    scores = jnp.where(protected, jnp.inf, scores)
    return jnp.where(slots.occupied[:, None, None, :], scores, -jnp.inf)


def select(scores: Float[Array, "B l k S"], positions: Int[Array, "B l k S"], retain: int) -> Int[Array, "B l k R"]:
    """The ``retain`` slots of highest score, ascending by slot. Ties: the newest position stays."""
    slot = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 3)
    *_, ranked = jax.lax.sort((scores, positions, slot), dimension=-1, num_keys=2)
    return jnp.sort(ranked[..., scores.shape[-1] - retain :], axis=-1)


def victim(scores: Float[Array, "B l k S"], positions: Int[Array, "B l k S"]) -> Int[Array, "B l k"]:
    """The one slot to overwrite: lowest score, and among equals the oldest position."""
    lowest = jnp.min(scores, axis=-1, keepdims=True)
    age = jnp.where(scores == lowest, positions, jnp.iinfo(jnp.int32).max)
    return jnp.argmin(age, axis=-1).astype(jnp.int32)
