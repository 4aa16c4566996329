"""The figure that compares policies: Pass@1 against the KV budget.

There is one panel for each model, a line for each policy, and a dashed line for the full cache.
"""

import itertools
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jkv.report.picture_files import save_figure
from jkv.report.results import Result, averages, is_baseline

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.container import ErrorbarContainer
    from matplotlib.lines import Line2D

# Okabe and Ito's colours (https://jfly.uni-koeln.de/color/) without black and yellow, and a violet and a brown. Markers
# distinguish lines of the same colour, and help readers who can't distinguish the colours.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#5b4a9f", "#7a5230")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
_OFFSET = 0.06  # between the intervals of two policies, as a fraction of the distance between two budgets
FEW = 4  # intervals are drawn for at most so many lines


def draw_policies(out: pathlib.Path, results: Sequence[Result]) -> None:
    """Write policies.png and policies.svg.

    Of several tasks the mean is drawn, with equal weights. Without a graded run within a budget nothing is drawn.

    Args:
        out: the sweep's directory.
        results: of the runs that are finished.
    """
    graded = [r for r in averages(results) if r.summary["pass_at_1"] is not None]
    budgeted = [r for r in graded if r.budget is not None]
    models = list(dict.fromkeys(r.model for r in budgeted))
    if not models:
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(models) + 2.4, 4.4), layout="constrained")
    budgets = sorted({r.budget for r in budgeted if r.budget is not None})
    styles = _styles(budgeted)
    # The policies' intervals at one budget are drawn side by side.
    gap = min((b - a for a, b in itertools.pairwise(budgets)), default=10)
    spread = gap if len(styles) <= FEW else 0.0
    panels = figure.subplots(1, len(models), squeeze=False, sharey=True)[0]
    handles: dict[str, Artist | ErrorbarContainer] = {}
    for axes, model in zip(panels, models, strict=True):
        for full in (r for r in graded if r.model == model and r.budget is None):
            handles[full.label + ", whole cache"] = axes.axhline(
                100 * full.summary["pass_at_1"], color="black", linestyle="--", linewidth=1.2
            )
        for index, (label, style) in enumerate(styles.items()):
            line = sorted((r for r in budgeted if (r.model, r.label) == (model, label)), key=lambda r: r.budget or 0)
            if line:
                offset = _OFFSET * (index - (len(styles) - 1) / 2) * spread
                handles[label] = _draw(axes, line, style, offset, intervals=len(styles) <= FEW)
        axes.set(title=model.rstrip("/").rpartition("/")[2], xlabel="KV budget, slots a row", ylim=(0, None))
        axes.set_xticks(budgets)
        if len(budgets) == 1:
            axes.set_xlim(budgets[0] - gap / 3, budgets[0] + gap / 3)
        axes.tick_params(axis="x", labelrotation=45 if len(axes.get_xticks()) > 4 else 0)
        axes.grid(color="#e6e6e6", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("Pass@1 (%)")
    figure.legend(
        handles.values(),  # pyright: ignore[reportArgumentType]  # matplotlib's annotation omits containers
        handles.keys(),
        loc="outside right center",
        frameon=False,
        fontsize=8.5,
    )
    save_figure(figure, out / "policies")


def _styles(results: Sequence[Result]) -> dict[str, dict[str, Any]]:
    """matplotlib's line options for each policy. The baseline (random, prompt pinned) is grey and dotted."""
    labels = {r.label: is_baseline(r) for r in results}
    pairs = ((c, m) for m, c in zip(itertools.cycle(_MARKERS), itertools.cycle(_COLOURS), strict=False))
    styles: dict[str, dict[str, Any]] = {}
    for label, baseline in labels.items():
        if baseline:
            styles[label] = {"color": "#777777", "marker": "o", "linestyle": ":"}
        else:
            colour, marker = next(pairs)
            styles[label] = {"color": colour, "marker": marker, "linestyle": "-"}
    return styles


def _draw(
    axes: "Axes", line: Sequence[Result], style: dict[str, Any], offset: float, *, intervals: bool
) -> "Line2D | ErrorbarContainer":
    at = [(r.budget or 0) + offset for r in line]
    values = [100 * r.summary["pass_at_1"] for r in line]
    if intervals:
        low = [max(v - 100 * r.summary["pass_at_1_low"], 0) for v, r in zip(values, line, strict=True)]
        high = [max(100 * r.summary["pass_at_1_high"] - v, 0) for v, r in zip(values, line, strict=True)]
        return axes.errorbar(at, values, [low, high], capsize=2, elinewidth=0.9, markersize=5, linewidth=1.6, **style)
    return axes.plot(at, values, markersize=5, linewidth=1.6, **style)[0]
