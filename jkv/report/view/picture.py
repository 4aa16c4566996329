"""The retention view as a picture, for papers: tokens coloured by their fate, their lifetimes, and the occupied slots.

Up to 700 tokens are written out; longer samples have one small square for each token, in reading order.
"""

import functools
import pathlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jkv.report.picture_files import save_figure
from jkv.report.view import fate
from jkv.report.view.fate import Moment
from jkv.report.view.history import History
from jkv.report.view.page import asset, detail, label
from jkv.terminal.text import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# A longer sample's tokens are drawn as squares.
_WRITTEN_OUT = 700
_FONT, _ADVANCE = "DejaVu Sans Mono", 0.602  # and the width of its characters, in font sizes
_SIZE, _LINE = 7.5, 1.75  # font size in points, and the distance between lines in font sizes
# Inches: margins, the gap between columns, widths of text and charts, heights of legend and head.
_MARGIN, _GAP, _TEXT, _CHART, _LEGEND, _HEAD = 0.15, 0.7, 5.6, 3.3, 0.35, 0.52


def draw_view(path: pathlib.Path, histories: Sequence[History], *, eviction: int | None = None) -> None:
    """Write the picture. One run has its tokens on the left and the charts on the right; several runs a column each.

    Args:
        path: where to write it; its suffix (.png, .svg, .pdf) is the format.
        histories: of the same sample, in one run or several.
        eviction: show the moment after so many of the first run's evictions; None: the end.

    Raises:
        OSError: the file can't be written.
    """
    from matplotlib.figure import Figure

    first = fate.moment(histories[0], eviction)
    same_time = lambda history: fate.at_position(history, first.position, before=eviction == 0)
    moments = [same_time(h) if eviction is not None else fate.moment(h) for h in histories]
    until = max(history.tokens for history in histories)
    single = len(histories) == 1
    heights = [_text_height(history) for history in histories]
    if single:
        width = _MARGIN + _TEXT + _GAP + _CHART + _MARGIN
        height = _HEAD + max(heights[0], 3.75) + _LEGEND
    else:
        width = _MARGIN + len(histories) * (_TEXT + _GAP)
        height = _HEAD + 2.9 + 0.5 + max(heights) + _LEGEND
    figure = Figure(figsize=(width, height))

    def axes(left: float, top: float, wide: float, high: float) -> "Axes":
        """New axes. All arguments are in inches; ``top`` counts from the figure's upper edge."""
        return figure.add_axes((left / width, 1 - (top + high) / height, wide / width, high / height))

    for index, (history, now) in enumerate(zip(histories, moments, strict=True)):
        left = _MARGIN + (0 if single else 0.5 + index * (_TEXT + _GAP))
        _title(figure, history, now, left / width, height)
        if single:
            _tokens(axes(left, _HEAD, _TEXT, heights[0]), history, now)
            left, wide, high = left + _TEXT + _GAP, _CHART, 3.4
        else:
            wide, high = _TEXT - 0.1, 2.9
            _tokens(axes(left - 0.4, _HEAD + high + 0.5, _TEXT, heights[index]), history, now)
        _lifetimes(axes(left, _HEAD, wide, high * 0.6), history, now, until)
        _occupancy(axes(left, _HEAD + high * 0.68, wide, high * 0.32), history, now, until)
    _legend(figure, histories)
    save_figure(figure, path, [path.suffix.removeprefix(".")])


@functools.cache
def colours() -> dict[str, str]:
    """The page's colours on a light background by their names in page.css (kept, window, gone-3, ...), as '#rrggbb'."""
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", asset("page.css").split("}")[0]))


def _rgb(names: Sequence[str]) -> np.ndarray:
    from matplotlib.colors import to_rgb

    return np.array([to_rgb(colours()[name]) for name in names])


def _colour_names(history: History, now: Moment) -> list[str]:
    """The name of each token's colour."""
    kinds, shades = fate.fates(history, now)
    names = []
    for kind, shade in zip(kinds.tolist(), shades.tolist(), strict=True):
        name = fate.NAMES[kind]
        names.append(f"{name}-{shade}" if kind in (fate.GONE, fate.PART) else "page" if kind == fate.LATER else name)
    return names


def _title(figure: "Figure", history: History, now: Moment, left: float, height: float) -> None:
    ended = "at the end" if now.position == history.tokens - 1 else f"{now.position + 1:,} tokens written"
    evictions = f"{now.count:,} of {history.evictions:,} evictions"
    name = f"{label(history)}: {visible(history.id)}, sample {history.sample}, {ended}, {evictions}"
    style: dict[str, Any] = {"ha": "left", "va": "top", "parse_math": False}
    figure.text(left, 1 - 0.1 / height, _drawable(name)[:90], fontsize=9, weight="bold", **style)
    figure.text(
        left, 1 - 0.29 / height, _drawable(detail(history))[:110], fontsize=7, color=colours()["quiet"], **style
    )


def _columns() -> int:
    """Characters in a line."""
    return int(_TEXT * 72 / (_SIZE * _ADVANCE))


def _text_height(history: History) -> float:
    """The height of the tokens, in inches."""
    if history.tokens > _WRITTEN_OUT:
        across = _across(history.tokens)
        return _TEXT * -(-history.tokens // across) / across
    return (max((row for row, *_ in _segments(history)), default=0) + 1) * _SIZE * _LINE / 72


def _across(tokens: int) -> int:
    """Squares in a line, at least 40: about as many as make the whole 1.5 times as wide as high."""
    return max(40, int(np.ceil((tokens * 1.5) ** 0.5)))


def _segments(history: History) -> list[tuple[int, int, str, int]]:
    """Break the text into lines: (row, column, characters, token).

    A token is only split at its newlines, and where it is longer than a line.
    """
    out, row, column, wide = [], 0, 0, _columns()
    starts = {history.prompt_tokens, history.thought_end} - {0, history.tokens}
    for token, piece in enumerate(history.pieces):
        if token in starts:  # an empty line between prompt, thought and answer
            row, column = row + 1 + (column > 0), 0
        for index, line in enumerate(re.split("\n+", visible(piece))):
            full = column and column + len(line) > wide >= len(line)
            row, column = (row + 1, 0) if index or full else (row, column)
            while line:
                if column >= wide:
                    row, column = row + 1, 0
                part, line = line[: wide - column], line[wide - column :]
                out.append((row, column, part, token))
                column += len(part)
    return out


@functools.cache
def _glyphs() -> frozenset[int]:
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont(_FONT)).get_charmap())


def _drawable(text: str) -> str:
    """The text with a square for each character that the font doesn't have."""
    return "".join(c if ord(c) in _glyphs() else "\u25a1" for c in text)


def _tokens(axes: "Axes", history: History, now: Moment) -> None:
    axes.set_axis_off()
    names = _colour_names(history, now)
    if history.tokens > _WRITTEN_OUT:
        across = _across(history.tokens)
        rows = -(-history.tokens // across)
        image = np.ones((rows * across, 3))
        image[: history.tokens] = _rgb(names)
        axes.imshow(image.reshape(rows, across, 3), aspect="auto", interpolation="nearest")
        return
    from matplotlib.patches import Rectangle

    segments = _segments(history)
    axes.set_xlim(0, _columns())
    axes.set_ylim(max(row for row, *_ in segments) + 1 if segments else 1, 0)
    style: dict[str, Any] = {"fontsize": _SIZE, "family": _FONT, "ha": "left", "va": "center", "parse_math": False}
    for row, column, text, token in segments:
        name = names[token]
        gone, later = name.startswith("gone"), name == "page"
        axes.add_patch(Rectangle((column, row + 0.08), len(text), 0.84, color=colours()[name], lw=0))
        ink = colours()["gone-ink" if gone else "later" if later else "ink"]
        axes.text(column, row + 0.5, _drawable(text), color=ink, **style)
        if gone:
            axes.plot([column, column + len(text)], [row + 0.5] * 2, color=colours()["strike"], lw=0.5)


def _lifetimes(axes: "Axes", history: History, now: Moment, until: int) -> None:
    columns, bands = min(until, 900), min(history.tokens, 600)
    share, kind = fate.lifetimes(history, columns, bands, until)
    full = _rgb(["later", "kept", "window", "sink", "pinned"])[kind]
    held = np.nan_to_num(share)[..., None]
    image = held * full + (1 - held) * _rgb(["gone-3"])[0]
    image = np.where(np.isnan(share)[..., None], 1.0, image)
    axes.imshow(image, aspect="auto", interpolation="nearest", extent=(0, until, history.tokens, 0))
    axes.set_ylabel("token", fontsize=7)
    axes.tick_params(labelsize=6, labelbottom=False, length=2)
    _now_line(axes, now)


def _now_line(axes: "Axes", now: Moment) -> None:
    axes.axvline(now.position + 1, color=colours()["ink"], lw=0.9, clip_on=False)


def _occupancy(axes: "Axes", history: History, now: Moment, until: int) -> None:
    times, slots = fate.occupancy(history)
    axes.plot(times + 1, slots, color=colours()["accent"], lw=0.9)
    if history.rule.budget is not None:
        axes.axhline(history.rule.budget, color=colours()["quiet"], lw=0.7, ls=(0, (4, 3)))
        axes.annotate("budget", (until * 0.015, history.rule.budget), fontsize=6, color=colours()["quiet"],
                      xytext=(0, -7), textcoords="offset points")  # fmt: skip
    axes.set_xlim(0, until)
    axes.set_ylim(0, 1.1 * max(int(slots.max()), history.rule.budget or 0))
    axes.set_xlabel("tokens written", fontsize=7)
    axes.set_ylabel("KV slots", fontsize=7)
    axes.tick_params(labelsize=6, length=2)
    _now_line(axes, now)


def _legend(figure: "Figure", histories: Sequence[History]) -> None:
    from matplotlib.patches import Patch

    rules = [history.rule for history in histories]
    entries = [("kept", "kept")]
    entries += [("window", "window")] if any(rule.window for rule in rules) else []
    entries += [("sink", "sink")] if any(rule.sinks for rule in rules) else []
    entries += [("pinned", "pinned prompt")] if any(rule.pin_prompt for rule in rules) else []
    if any(history.gone.shape[:2] != (1, 1) for history in histories):
        entries += [("part-1", "kept by few heads"), ("part-6", "by many")]
    entries += [("gone-1", "evicted early"), ("gone-7", "evicted late")]
    patches = [Patch(facecolor=colours()[name], edgecolor=colours()["line"], label=text) for name, text in entries]
    left = _MARGIN / figure.get_figwidth() - 0.006
    figure.legend(
        handles=patches,
        loc="lower left",
        bbox_to_anchor=(left, 0.0),
        ncols=len(patches),
        fontsize=6.5,
        frameon=False,
        borderpad=0.2,
    )
