"""The budget words of a run, and the one place that turns scores into what stays.

Protection (sinks, pinned prompt, window), the tie rule and the number of kept slots are the same for every policy.
"""

import dataclasses
import math
from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped

from jkv.axes import Array, Float, Int
from jkv.errors import UserError
from jkv.ops.select import select as select
from jkv.ops.select.bits import in_order

if TYPE_CHECKING:
    from jkv.policies.base import Slots

Granularity = Literal["shared", "head"]


@dataclasses.dataclass(frozen=True)
class Retention:
    """The budget words of one run: how much stays, and what is never evicted.

    budget: slots a row owns (S).  retain: slots occupied right after an eviction.  window: the newest tokens.
    sinks: the oldest.  pin_prompt: the prompt.  granularity: one keep set a row, or one a layer and KV head.
    long_prompts: whether a prompt may be longer than the budget; it is then read in pieces, evicting as decoding does.
    """

    budget: int
    retain: int
    window: int = 0
    sinks: int = 0
    pin_prompt: bool = False
    granularity: Granularity = "shared"
    long_prompts: bool = False

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
        if length > self.budget and not self.long_prompts:
            raise UserError(
                f"the prompt has {length} tokens, the budget {self.budget} slots",
                where=where,
                mend="raise --budget, or evict while reading it with --long-prompts evict",
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


_HIGHEST = float(np.finfo(np.float32).max)


def priority(scores: Float[Array, "B score_layers score_heads S"], slots: "Slots") -> Float[Array, "B l k S"]:
    """The policy's scores on the run's keep sets: averaged over layers and heads where the keep set is shared.

    Protected slots are at +inf, dead ones at -inf, and no policy's score reaches either: what is protected outlives
    even tokens that a policy scores +inf. A NaN counts as the lowest score.
    """
    if slots.rule.granularity == "shared" and scores.shape[1:3] != (1, 1):
        scores = jnp.mean(scores, axis=(1, 2), keepdims=True)
    scores = jnp.broadcast_to(scores, slots.positions.shape).astype(jnp.float32)
    scores = jnp.where(jnp.isnan(scores), -_HIGHEST, jnp.clip(scores, -_HIGHEST, _HIGHEST))
    scores = jnp.where(slots.protected, jnp.inf, scores)
    return jnp.where(slots.occupied[:, None, None, :], scores, -jnp.inf)


def victim(scores: Float[Array, "B l k S"], positions: Int[Array, "B l k S"]) -> Int[Array, "B l k"]:
    """The one slot to overwrite: lowest score, and among equals the oldest position."""
    slots = scores.shape[-1]

    # Integers: XLA for TPU may keep a running minimum in bfloat16 where only its slot is used. One axis of rows: see
    # jkv.ops.select.xla. On CPU neither pays.
    def flat(scores: jax.Array, positions: jax.Array) -> jax.Array:
        rows = lambda x: x.reshape(-1, slots)
        return _lowest(rows(in_order(scores)), rows(positions)).reshape(scores.shape[:-1])

    return jax.lax.platform_dependent(scores, positions, cpu=_lowest, default=flat)


def _lowest(key: Shaped[Array, "*rows S"], position: Int[Array, "*rows S"]) -> Int[Array, "*rows"]:
    """The slot of lowest (key, position)."""
    slot = jax.lax.broadcasted_iota(jnp.int32, key.shape, key.ndim - 1)

    # One pass that reads keys once. Comparing them with their minimum reads them twice, and XLA may compute them
    # twice, rounded differently: then none of them is the minimum.
    def lower(a, b):
        a_first = (a[0] < b[0]) | ((a[0] == b[0]) & (a[1] <= b[1]))
        return tuple(jnp.where(a_first, x, y) for x, y in zip(a, b, strict=True))

    last = jnp.int32(jnp.iinfo(jnp.int32).max)
    highest = jnp.asarray(jnp.inf if key.dtype == jnp.float32 else last, key.dtype)
    return jax.lax.reduce((key, position, slot), (highest, last, jnp.int32(0)), lower, (key.ndim - 1,))[2]
