"""What each token is at a moment, as numbers: the same that the page's script (model.js) says, for the picture."""

import dataclasses

import numpy as np

from jkv.report.view.history import History

LATER, KEPT, WINDOW, SINK, PINNED, PART, GONE = range(7)
NAMES = ("later", "kept", "window", "sink", "pinned", "part", "gone")
SHADES = 8


@dataclasses.dataclass(frozen=True)
class Moment:
    """When a history is looked at: the newest written position, and how many evictions are over."""

    position: int
    count: int


def moment(history: History, eviction: int | None = None) -> Moment:
    """After so many evictions; None is the end, 0 before the first."""
    if eviction is None or not history.evictions:
        return Moment(history.tokens - 1, history.evictions)
    return Moment(int(history.positions[max(eviction - 1, 0)]), eviction)


def at_position(history: History, position: int, *, before: bool = False) -> Moment:
    """When so much was written, as seen beside another run. before: no eviction is over yet."""
    count = 0 if before else int(np.searchsorted(history.positions, position, side="right"))
    return Moment(min(position, history.tokens - 1), count)


def fates(history: History, now: Moment) -> tuple[np.ndarray, np.ndarray]:
    """For every token its fate [n] (LATER .. GONE) and its shade [n] (0 .. SHADES - 1): of GONE by when it went, of
    PART by how many heads hold it."""
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
    """Tokens written and slots occupied, [2E + 2] each: a rise to every eviction, then its fall."""
    inserted = max(history.tokens - 2, 0)  # the last token is drawn, never put in
    times, slots = [0], [1]
    last, left = -1, 0
    for position, kept in zip(history.positions.tolist(), history.kept.tolist(), strict=True):
        times += [position, position]
        slots += [left + position - last, kept]
        last, left = position, kept
    return np.array([*times, inserted]), np.array([*slots, left + inserted - last])


def lifetimes(history: History, columns: int, bands: int, until: int) -> tuple[np.ndarray, np.ndarray]:
    """The share of each band of tokens that is held at each of ``columns`` times from 0 to ``until`` tokens written:
    [bands, columns], NaN where none is written. Also what of it is protected, as fates."""
    n, rule = history.tokens, history.rule
    p = np.arange(n)
    band = p * bands // n
    column = lambda position: np.minimum(columns - 1, position * columns // until)
    change, born = np.zeros((bands, columns)), np.zeros((bands, columns))
    np.add.at(born, (band, column(p)), 1)
    sets = history.gone.shape[0] * history.gone.shape[1]
    for gone in history.gone.reshape(sets, n):
        went = gone < history.evictions
        np.add.at(change, (band[went], column(history.positions[gone[went]])), 1 / sets)
    written = born.cumsum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.clip(np.where(written > 0, (written - change.cumsum(1)) / written, np.nan), 0, 1)
    share[:, int(column(np.int64(n - 1))) + 1 :] = np.nan
    start = np.arange(bands)[:, None] * n / bands
    now = (np.arange(columns) + 1)[None] * until / columns - 1
    kind = np.where(start > now - rule.window, WINDOW, KEPT)
    kind = np.where(start < rule.sinks, SINK, kind)
    return share, np.where(rule.pin_prompt & (start < history.prompt_tokens), PINNED, kind)
