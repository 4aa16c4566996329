"""The figure: Pass@1 bars and a throughput line against the KV budget, a panel a model."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from jkv.report.picture_files import save_figure
from jkv.report.published import Panel, Published
from jkv.report.results import Result, averages

BLUE, ORANGE = "#3a73b0", "#d9741a"
_WIDTH = 0.68  # of a bar, in distances between bars
# Beside a bar's middle, where the line has its marker: its interval to the left, a published value to the right.
_LANE = 0.2


def draw_figure(
    out: pathlib.Path, results: Sequence[Result], policy: str, overlay: Published | None, hub: dict[str, str]
) -> None:
    """figure.png and figure.svg: ``policy``'s Pass@1 averaged over tasks with its 95 % interval, and its tokens/s.

    overlay: published values as hollow marks.  hub: models by what they are called here, to find their published panel.
    Nothing is drawn before a run of ``policy`` is finished.
    """
    mine = [r for r in averages(results) if r.label == policy and r.budget is not None]
    models = list(dict.fromkeys(r.model for r in mine))
    if not models:
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6 * len(models), 3.9), layout="constrained")
    panels = figure.subplots(1, len(models), squeeze=False)[0]
    published = [None if overlay is None else overlay.of(model, hub.get(model, model)) for model in models]
    handles: dict[str, Any] = {}
    for axes, model, panel in zip(panels, models, published, strict=True):
        budgets = sorted({r.budget for r in mine if r.budget is not None} | set(_budgets(overlay, panel)))
        handles |= _draw_panel(axes, [r for r in mine if r.model == model], budgets, overlay, panel)
        axes.set_title(model.rstrip("/").rpartition("/")[2], fontsize=12, fontweight="bold")
    figure.legend(
        handles.values(), handles.keys(), loc="outside upper center", ncols=len(handles), frameon=False, fontsize=10
    )
    figure.supxlabel(f"KV budget, slots a row ({policy}; {_what(mine)})", fontsize=10)
    save_figure(figure, out / "figure")


def _budgets(overlay: Published | None, panel: Panel | None) -> list[int]:
    return [] if overlay is None or panel is None else overlay.budgets


def _what(results: Sequence[Result]) -> str:
    tasks = list(dict.fromkeys(part.task for r in results for part in r.tasks))
    names = ", ".join(pathlib.PurePath(task).name for task in tasks)
    devices = list(dict.fromkeys(part.summary["device"] for r in results for part in r.tasks))
    return f"{names}; {', '.join(devices)}"


def _draw_panel(
    axes: Any, results: Sequence[Result], budgets: Sequence[int], overlay: Published | None, panel: Panel | None
) -> dict[str, Any]:
    """Bars on the left axis, the line on the right one; what each mark is called."""
    place = {budget: index for index, budget in enumerate(budgets)}
    by_budget = {r.budget: r.summary for r in results}
    graded = {budget: s for budget, s in by_budget.items() if budget is not None and s["pass_at_1"] is not None}
    right = axes.twinx()
    handles: dict[str, Any] = {}
    tops = [0.0]
    if graded:
        at = [place[budget] for budget in graded]
        values, low, high = (
            np.array([100 * s[name] for s in graded.values()])
            for name in ("pass_at_1", "pass_at_1_low", "pass_at_1_high")
        )
        bars = axes.bar(at, values, _WIDTH, color=BLUE, zorder=2)
        # An interval of the bootstrap can miss the mean by a rounding.
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
    # Room above the bars: 1.15 keeps the tallest interval off the frame, and 10 keeps an axis where nothing is right.
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


def _write_value(axes: Any, at: int, value: float, top: float, limit: float) -> None:
    """The bar's value: at its foot, where no line runs, or above it if it is too short."""
    inside = value > 0.14 * limit
    axes.text(
        at, 0.02 * limit if inside else top + 0.015 * limit, f"{value:.1f}", ha="center", va="bottom", fontsize=9.5,
        fontweight="bold", color="white" if inside else "#12406f", zorder=6,
        # The interval may reach down here.
        bbox={"facecolor": BLUE, "edgecolor": "none", "pad": 1.0} if inside else None,
    )  # fmt: skip


def _draw_line(
    right: Any, by_budget: dict[Any, dict[str, Any]], place: dict[int, int], overlay: Published | None, panel: Any
) -> dict[str, Any]:
    pairs = sorted((place[budget], s["tps"]) for budget, s in by_budget.items())
    line = right.plot(
        *zip(*pairs, strict=True), color=ORANGE, marker="o", markeredgecolor="white", linewidth=2, zorder=4
    )[0]
    handles, tops = {"throughput, tokens/s": line}, [tps for _, tps in pairs]
    if panel is not None and panel.throughput_tps is not None and overlay is not None:
        at = [place[budget] for budget in overlay.budgets]
        marks = right.plot(
            at, panel.throughput_tps, "o", markerfacecolor="none", markeredgecolor="#a34d05", markeredgewidth=1.3,
            markersize=8, zorder=4,
        )[0]  # fmt: skip
        handles["throughput, published"] = marks
        tops += panel.throughput_tps
    # From 0, so that a small difference looks small.
    right.set_ylim(0, 1.12 * max(tops))
    return handles
