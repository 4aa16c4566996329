"""The budget options of a run: how much stays after an eviction, and what is never evicted. All counts are tokens.

``jkv.engine.priority`` applies them to scores.
"""

import dataclasses
import math
from typing import Literal

from jkv.errors import UserError

Granularity = Literal["shared", "head"]


@dataclasses.dataclass(frozen=True)
class Retention:
    """The budget options of one run: how much stays, and what is never evicted.

    Attributes:
        budget: slots that a row owns per layer and KV head (S). Everything below lives inside.
        retain: slots still occupied right after an eviction (R).
        window: the newest tokens that are never evicted (W).
        sinks: the oldest tokens that are never evicted.
        pin_prompt: whether the prompt is never evicted.
        granularity: 'shared': one keep set a row; 'head': one for each layer and KV head.
        long_prompts: whether a prompt may be longer than the budget. Then it is read in pieces, and evicts as decoding
            does.

    Raises:
        UserError: values that contradict each other.
    """

    budget: int
    retain: int
    window: int = 0
    sinks: int = 0
    pin_prompt: bool = False
    granularity: Granularity = "shared"
    long_prompts: bool = False

    def __post_init__(self) -> None:
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
        """Whether one token goes when one comes (retain = budget - 1): its slot is overwritten and nothing moves."""
        return self.retain == self.budget - 1

    def check_prompt(self, length: int, where: str) -> None:
        """Refuse a prompt that doesn't fit.

        Args:
            length: its tokens.
            where: which prompt, for the message.

        Raises:
            UserError: it is longer than the budget (unless ``long_prompts``), or what is protected with it is more than
                ``retain``.
        """
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
    """How many slots stay by DynTS's rule (arXiv:2601.18383): window + floor(ratio * (n - window)).

    n, the slots occupied at the eviction, is the budget here, because only full rows evict.
    """
    return window + math.floor(ratio * max(budget - window, 0))
