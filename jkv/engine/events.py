"""What goes into the engine and what comes out of it while it runs."""

import dataclasses
from typing import NamedTuple

import numpy as np


@dataclasses.dataclass(frozen=True)
class Request:
    """One sample to draw: a prompt of token ids, and how many new tokens at most."""

    id: str
    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    sample: int = 0


class Completion(NamedTuple):
    """A finished request. ``kept`` are the positions still in the buffer, [n] or nested [L][K][n], ascending."""

    request: Request
    token_ids: list[int]
    finish: str  # eos | length
    evictions: int
    peak_slots: int
    slot_steps: int
    kept: list


class Eviction(NamedTuple):
    """One eviction of one row (only with ``trace``). ``position``: the newest token's. ``kept``: as in Completion.

    ``scores`` (of an engine that records them): float32 [S] or [L, K, S], of the slots occupied before the eviction, in
    the order of their tokens' positions; what was protected has +inf.
    """

    request: Request
    event: int
    position: int
    kept: list
    scores: np.ndarray | None = None


class Progress(NamedTuple):
    """After every call of the device: tokens drawn so far, rows at work, slots they occupy."""

    tokens: int
    active_rows: int
    occupied_slots: int


@dataclasses.dataclass
class Timings:
    """Seconds spent and decode steps made. ``decode`` and ``prefill`` exclude compilation."""

    compile: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    steps: int = 0
