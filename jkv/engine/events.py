"""What goes into the engine, what it yields while it runs, and how long its parts took."""

import dataclasses
from typing import Literal, NamedTuple

import numpy as np


@dataclasses.dataclass(frozen=True)
class Request:
    """One sample to draw.

    Attributes:
        id: the problem's. With ``sample`` and the engine's seed it gives the random key.
        prompt_ids: the prompt's tokens, at least one.
        max_new_tokens: new tokens at most, at least 1; the end-of-sequence token counts.
        sample: which of the problem's samples, from 0.
    """

    id: str
    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    sample: int = 0


class Completion(NamedTuple):
    """A finished request.

    Attributes:
        request: what was asked for.
        token_ids: the new tokens, an end-of-sequence token included.
        finish: 'eos' if the last token ends the sequence, 'length' if ``max_new_tokens`` were drawn.
        evictions: how many there were, those while the prompt was read included.
        peak_slots: the most slots that were occupied at once.
        slot_steps: occupied slots, summed over the request's decode steps (one for each new token but the first, which
            prefill draws). Divided by those steps it is the mean number of occupied slots.
        kept: positions of the tokens in the buffer at the end, ascending: [n], or nested [L][K][n] with granularity
            head. The last new token is not among them: it is never put into the buffer.
    """

    request: Request
    token_ids: list[int]
    finish: Literal["eos", "length"]
    evictions: int
    peak_slots: int
    slot_steps: int
    kept: list


class Eviction(NamedTuple):
    """One eviction of one row. Only a run with ``trace`` yields it.

    Attributes:
        request: that of the row.
        event: the number of the eviction among those of this request, from 0.
        position: of the newest token in the buffer when it happened.
        kept: positions of the tokens that stayed, ascending: [R], or nested [L][K][R] with granularity head.
        scores: what the eviction was decided by, float32 [S], or [L, K, S] with granularity head, in the order of the
            positions of the tokens that were in the buffer before it; +inf for protected tokens. None unless the engine
            records scores.
    """

    request: Request
    event: int
    position: int
    kept: list
    scores: np.ndarray | None = None


class Progress(NamedTuple):
    """Where a run stands after a call of the decode program.

    Attributes:
        tokens: new tokens drawn so far in this run, over all requests.
        active_rows: rows whose request is not finished.
        occupied_slots: slots that those rows occupy, summed over them.
    """

    tokens: int
    active_rows: int
    occupied_slots: int


@dataclasses.dataclass
class Timings:
    """Seconds spent and decode steps made by an engine, added up over all runs since ``Engine.timings`` was set.

    Attributes:
        compile: seconds of tracing, lowering and compiling.
        prefill: seconds of reading prompts, until the first new token is on the host; without compilation.
        decode: seconds of calling the decode program, until its tokens are on the host; without compilation.
        steps: decode steps in which at least one row drew a token; one step serves all rows of the batch.
    """

    compile: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    steps: int = 0
