"""The fate of each token at a moment: whether it is in the KV buffer then, why, or when it was evicted.

The picture uses these functions; model.js computes the same for the page.
"""

import dataclasses

import numpy as np

from jkv.report.view.history import History

# Not written yet; in the buffer because of its score, the window, the sinks or the pinned prompt; held by some of the
# KV heads only; evicted.
LATER, KEPT, WINDOW, SINK, PINNED, PART, GONE = range(7)
NAMES = ("later", "kept", "window", "sink", "pinned", "part", "gone")
SHADES = 8


@dataclasses.dataclass(frozen=True)
class Moment:
    """A point in a history.

    Attributes:
        position: of the newest token that is written.
        count: how many evictions have happened.
    """

    position: int
    count: int


def moment(history: History, eviction: int | None = None) -> Moment:
    """The moment after ``eviction`` evictions. 0 is the moment before the first; None is the end."""
    if eviction is None or not history.evictions:
        return Moment(history.tokens - 1, history.evictions)
    return Moment(int(history.positions[max(eviction - 1, 0)]), eviction)


def at_position(history: History, position: int, *, before: bool = False) -> Moment:
    """The moment when the token at ``position`` had been written, to show several runs at the same time.

    Args:
        history: of the run; a position after its end means its end.
        position: of the newest token.
        before: whether no eviction at all has happened, as in ``moment(..., 0)`` of the run that is compared with.
    """
    count = 0 if before else int(np.searchsorted(history.positions, position, side="right"))
    return Moment(min(position, history.tokens - 1), count)


def fates(history: History, now: Moment) -> tuple[np.ndarray, np.ndarray]:
    """The fate of each of the n tokens.

    Returns:
        [n] the fate, LATER to GONE, and [n] the shade, 0 to SHADES - 1: for GONE how late it was evicted, for PART how
        many heads hold it, else 0.
    """
    rule, p = history.rule, np.arange(history.tokens)
    share, last = history.held(now.count), history.gone.max((0, 1))
    fate = np.full(history.tokens, KEPT)
    fate[p > min(now.position, history.tokens - 2) - rule.window] = WINDOW
    fate[p < rule.sinks] = SINK
    if rule.pin_prompt:
        fate[p < history.prompt_tokens] = PINNED
    fate[share < 1] = PART
    fate[last < now.count] = GONE
    fate[p > now.position] = LATER
    by_time = SHADES * last // max(history.evictions, 1)
    shade = np.where(fate == GONE, by_time, np.where(fate == PART, SHADES * share, 0))
    return fate, np.minimum(shade, SHADES - 1).astype(np.int64)


def occupancy(history: History) -> tuple[np.ndarray, np.ndarray]:
    """The occupied slots over time, as a line: it rises to each of the E evictions and falls there.

    Returns:
        [2E + 2] positions of the newest token, and [2E + 2] slots occupied.
    """
    inserted = max(history.tokens - 2, 0)  # the last token is sampled, but never put into the buffer
    times, slots = [0], [1]
    last, left = -1, 0
    for position, kept in zip(history.positions.tolist(), history.kept.tolist(), strict=True):
        times += [position, position]
        slots += [left + position - last, kept]
        last, left = position, kept
    return np.array([*times, inserted]), np.array([*slots, left + inserted - last])


def lifetimes(history: History, columns: int, bands: int, until: int) -> tuple[np.ndarray, np.ndarray]:
    """Which tokens are in the buffer over time, as an image.

    Args:
        history: of n tokens.
        columns: points in time, from 0 to ``until`` tokens written.
        bands: groups of neighbouring tokens.
        until: tokens written at the last column.

    Returns:
        [bands, columns] the fraction of each band's written tokens that is in the buffer, the mean over keep sets; NaN
        where none is written. And [bands, columns] the fate of those in the buffer: KEPT, WINDOW, SINK or PINNED.
    """
    n, rule = history.tokens, history.rule
    p = np.arange(n)
    band = p * bands // n
    column = lambda position: np.minimum(columns - 1, position * columns // until)
    added, dropped = np.zeros((bands, columns)), np.zeros((bands, columns))
    np.add.at(added, (band, column(p)), 1)
    sets = history.gone.shape[0] * history.gone.shape[1]
    for gone in history.gone.reshape(sets, n):
        evicted = gone < history.evictions
        np.add.at(dropped, (band[evicted], column(history.positions[gone[evicted]])), 1 / sets)
    written = added.cumsum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.clip(np.where(written > 0, (written - dropped.cumsum(1)) / written, np.nan), 0, 1)
    share[:, int(column(np.int64(n - 1))) + 1 :] = np.nan
    start = np.arange(bands)[:, None] * n / bands
    now = (np.arange(columns) + 1)[None] * until / columns - 1
    kind = np.where(start > now - rule.window, WINDOW, KEPT)
    kind = np.where(start < rule.sinks, SINK, kind)
    return share, np.where(rule.pin_prompt & (start < history.prompt_tokens), PINNED, kind)
