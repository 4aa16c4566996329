"""The second picture: Pass@1 against the KV budget, one line a policy, the full cache dashed; a panel a model."""

import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

from jkv.report.picture_files import save_figure
from jkv.report.results import Result, averages, is_baseline

# Okabe and Ito's colours without the pale yellow, which most colour-blind eyes tell apart; markers tell the rest.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#5b4a9f", "#7a5230")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
_BESIDE = 0.06  # of the distance between two budgets
FEW = 4  # so many lines still show their intervals


def draw_policies(out: pathlib.Path, results: Sequence[Result]) -> None:
    """policies.png and policies.svg: averaged over tasks with equal weight. Nothing to compare: nothing is drawn."""
    graded = [r for r in averages(results) if r.summary["pass_at_1"] is not None]
    mine = [r for r in graded if r.budget is not None]
    models = list(dict.fromkeys(r.model for r in mine))
    if not models:
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(models) + 2.4, 4.4), layout="constrained")
    budgets = sorted({r.budget for r in mine if r.budget is not None})
    styles = _styles(mine)
    # Intervals at one budget stand beside each other.
    gap = min((b - a for a, b in itertools.pairwise(budgets)), default=10)
    apart = gap if len(styles) <= FEW else 0.0
    panels = figure.subplots(1, len(models), squeeze=False, sharey=True)[0]
    handles: dict[str, Any] = {}
    for axes, model in zip(panels, models, strict=True):
        for full in (r for r in graded if r.model == model and r.budget is None):
            handles[full.label + ", whole cache"] = axes.axhline(
                100 * full.summary["pass_at_1"], color="black", linestyle="--", linewidth=1.2
            )
        for place, (label, style) in enumerate(styles.items()):
            line = sorted((r for r in mine if (r.model, r.label) == (model, label)), key=lambda r: r.budget or 0)
            if line:
                beside = _BESIDE * (place - (len(styles) - 1) / 2) * apart
                handles[label] = _draw(axes, line, style, beside, intervals=len(styles) <= FEW)
        axes.set(title=model.rstrip("/").rpartition("/")[2], xlabel="KV budget, slots a row", ylim=(0, None))
        axes.set_xticks(budgets)
        if len(budgets) == 1:
            axes.set_xlim(budgets[0] - gap / 3, budgets[0] + gap / 3)
        axes.tick_params(axis="x", labelrotation=45 if len(axes.get_xticks()) > 4 else 0)
        axes.grid(color="#e6e6e6", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("Pass@1 (%)")
    figure.legend(handles.values(), handles.keys(), loc="outside right center", frameon=False, fontsize=8.5)
    save_figure(figure, out / "policies")


def _styles(results: Sequence[Result]) -> dict[str, dict[str, Any]]:
    """Colour and marker of each policy; random, which a policy must beat, is grey and dotted."""
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


def _draw(axes: Any, line: Sequence[Result], style: dict[str, Any], beside: float, *, intervals: bool) -> Any:
    at = [(r.budget or 0) + beside for r in line]
    values = [100 * r.summary["pass_at_1"] for r in line]
    if intervals:
        low = [max(v - 100 * r.summary["pass_at_1_low"], 0) for v, r in zip(values, line, strict=True)]
        high = [max(100 * r.summary["pass_at_1_high"] - v, 0) for v, r in zip(values, line, strict=True)]
        return axes.errorbar(at, values, [low, high], capsize=2, elinewidth=0.9, markersize=5, linewidth=1.6, **style)
    return axes.plot(at, values, markersize=5, linewidth=1.6, **style)[0]
