"""The figure of one policy: Pass@1 as bars and throughput as a line against the KV budget, a panel for each model."""

import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jkv.report.picture_files import save_figure
from jkv.report.published import Panel, Published
from jkv.report.results import Result, averages

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.container import BarContainer

    Handles = dict[str, Artist | BarContainer]  # what the legend shows, by its text

BLUE, ORANGE = "#3a73b0", "#d9741a"
# In distances between bars. The throughput's marker is at a bar's middle, so the interval is drawn to its left and a
# published value to its right.
_WIDTH, _LANE = 0.68, 0.2


def draw_figure(
    out: pathlib.Path, results: Sequence[Result], policy: str, overlay: Published | None, hub: dict[str, str]
) -> None:
    """Write figure.png and figure.svg: Pass@1 in percent with its 95 % interval, and tokens/s.

    Of several tasks the mean is drawn, with equal weights. Nothing is drawn while no run of the policy is finished.

    Args:
        out: the sweep's directory.
        results: of the runs that are finished.
        policy: whose results are drawn, by its label in the sweep.
        overlay: published values to draw as hollow marks.
        hub: each model's path or Hub id by its name in the sweep; finds its panel in ``overlay``.
    """
    budgeted = [r for r in averages(results) if r.label == policy and r.budget is not None]
    models = list(dict.fromkeys(r.model for r in budgeted))
    if not models:
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6 * len(models), 3.9), layout="constrained")
    panels = figure.subplots(1, len(models), squeeze=False)[0]
    published = [None if overlay is None else overlay.of(model, hub.get(model, model)) for model in models]
    handles: Handles = {}
    for axes, model, panel in zip(panels, models, published, strict=True):
        budgets = sorted({r.budget for r in budgeted if r.budget is not None} | set(_budgets(overlay, panel)))
        handles |= _draw_panel(axes, [r for r in budgeted if r.model == model], budgets, overlay, panel)
        axes.set_title(model.rstrip("/").rpartition("/")[2], fontsize=12, fontweight="bold")
    figure.legend(
        handles.values(),  # pyright: ignore[reportArgumentType]  # matplotlib's annotation omits containers
        handles.keys(),
        loc="outside upper center",
        ncols=len(handles),
        frameon=False,
        fontsize=10,
    )
    figure.supxlabel(f"KV budget, slots a row ({policy}; {_tasks_and_devices(budgeted)})", fontsize=10)
    save_figure(figure, out / "figure")


def _budgets(overlay: Published | None, panel: Panel | None) -> list[int]:
    return [] if overlay is None or panel is None else overlay.budgets


def _tasks_and_devices(results: Sequence[Result]) -> str:
    tasks = list(dict.fromkeys(run.task for r in results for run in r.runs))
    names = ", ".join(pathlib.PurePath(task).name for task in tasks)
    devices = list(dict.fromkeys(run.summary["device"] for r in results for run in r.runs))
    return f"{names}; {', '.join(devices)}"


def _draw_panel(
    axes: "Axes", results: Sequence[Result], budgets: Sequence[int], overlay: Published | None, panel: Panel | None
) -> "Handles":
    """Draw a model's bars on the left axis and its line on the right one. Returns what the legend is to show."""
    place = {budget: index for index, budget in enumerate(budgets)}
    by_budget = {r.budget: r.summary for r in results if r.budget is not None}
    graded = {budget: s for budget, s in by_budget.items() if s["pass_at_1"] is not None}
    right = axes.twinx()
    handles: Handles = {}
    tops = [0.0]
    if graded:
        at = [place[budget] for budget in graded]
        values, low, high = (
            np.array([100 * s[name] for s in graded.values()])
            for name in ("pass_at_1", "pass_at_1_low", "pass_at_1_high")
        )
        bars = axes.bar(at, values, _WIDTH, color=BLUE, zorder=2)
        # A bootstrap interval can miss the mean by a rounding error, and errorbar() refuses negative lengths.
        spread = [np.maximum(values - low, 0), np.maximum(high - values, 0)]
        lanes = [x - _LANE for x in at]
        axes.errorbar(lanes, values, spread, fmt="none", ecolor="#1c3049", elinewidth=1.2, capsize=3, zorder=3)
        handles["Pass@1, 95 % interval"] = bars
        tops += list(high)
    if panel is not None and overlay is not None:
        at = [place[budget] + _LANE for budget in overlay.budgets]
        (marks,) = axes.plot(
            at, panel.pass_at_1, "D", markerfacecolor="none", markeredgecolor="#12406f", markeredgewidth=1.3, zorder=5
        )
        handles["Pass@1, published"] = marks
        tops += panel.pass_at_1
    # The axis ends above the tallest interval, at 10 % at least (if nothing is right) and 105 % at most.
    limit = min(max(1.15 * max(tops), 10.0), 105.0)
    axes.set_ylim(0, limit)
    for budget, s in graded.items():
        _write_value(axes, place[budget], 100.0 * s["pass_at_1"], 100.0 * s["pass_at_1_high"], limit)
    handles |= _draw_line(right, by_budget, place, overlay, panel)
    axes.set_xticks(range(len(budgets)), [f"{budget:,}" if budget >= 10_000 else str(budget) for budget in budgets])
    axes.set_xlim(-0.6, len(budgets) - 0.4)
    axes.set_ylabel("Pass@1 (%)", color=BLUE)
    right.set_ylabel("throughput (tokens/s)", color=ORANGE)
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8, zorder=0)
    for side in (axes, right):
        side.spines["top"].set_visible(False)
    return handles


def _write_value(axes: "Axes", at: int, value: float, top: float, limit: float) -> None:
    """Write a bar's value: at its foot, where the throughput line rarely runs, or above the bar if it is too short."""
    inside = value > 0.14 * limit
    axes.text(
        at, 0.02 * limit if inside else top + 0.015 * limit, f"{value:.1f}", ha="center", va="bottom", fontsize=9.5,
        fontweight="bold", color="white" if inside else "#12406f", zorder=6,
        # A ground of its own, as the interval may reach down to the text.
        bbox={"facecolor": BLUE, "edgecolor": "none", "pad": 1.0} if inside else None,
    )  # fmt: skip


def _draw_line(
    right: "Axes",
    by_budget: dict[int, dict[str, Any]],
    place: dict[int, int],
    overlay: Published | None,
    panel: Panel | None,
) -> "Handles":
    """Draw the throughput in tokens/s. Returns what the legend is to show."""
    pairs = sorted((place[budget], s["tps"]) for budget, s in by_budget.items())
    line = right.plot(
        *zip(*pairs, strict=True), color=ORANGE, marker="o", markeredgecolor="white", linewidth=2, zorder=4
    )[0]
    tops = [tps for _, tps in pairs]
    handles: Handles = {"throughput, tokens/s": line}
    if panel is not None and panel.throughput_tps is not None and overlay is not None:
        at = [place[budget] for budget in overlay.budgets]
        marks = right.plot(
            at, panel.throughput_tps, "o", markerfacecolor="none", markeredgecolor="#a34d05", markeredgewidth=1.3,
            markersize=8, zorder=4,
        )[0]  # fmt: skip
        handles["throughput, published"] = marks
        tops += panel.throughput_tps
    # The axis begins at 0, so that a small difference looks small.
    right.set_ylim(0, 1.12 * max(tops))
    return handles
