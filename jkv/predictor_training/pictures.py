"""Pictures of a training: the loss and the overlap over its steps; predicted and true importance along one trace."""

import pathlib
from typing import Any

import numpy as np

from jkv.report.picture_files import save_figure

BLUE, ORANGE, GREY = "#1f5a99", "#d1701a", "#777777"


def draw_training(out: pathlib.Path, log: list[dict[str, Any]], known: dict[str, dict[str, float]]) -> None:
    """Draw loss.png and loss.svg: the loss in training and on held-out traces, and the overlap of the top 30 %.

    Args:
        out: the directory.
        log: of the training (`jkv.predictor_training.training.train`).
        known: scores of the orders to compare with (`jkv.predictor_training.metrics.baselines`).
    """
    from matplotlib.figure import Figure

    steps = [line for line in log if "step" in line]
    epochs = [line for line in log if "spearman" in line]
    last_step = {line["epoch"]: line["step"] for line in steps}
    at = [last_step[line["epoch"]] for line in epochs]
    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([x["step"] for x in steps], [x["loss"] for x in steps], color=GREY, linewidth=0.8, label="training")
    left.plot(at, [x["validation_loss"] for x in epochs], color=BLUE, marker=".", label="held out (squared error)")
    if all(x["loss"] > 0 for x in steps):
        left.set_yscale("log")
    left.set(xlabel="step", ylabel="loss", title="Loss")
    left.legend(frameon=False)
    right.plot(at, [x["top30"] for x in epochs], color=BLUE, marker=".", label="predictor")
    right.axhline(known["random"]["top30"], color=GREY, linestyle=":", label="random")
    right.axhline(known["recency"]["top30"], color=ORANGE, linestyle="--", label="recency")
    right.set(xlabel="step", ylabel="share found", ylim=(0, 1), title="Overlap with the true top 30 %, held out")
    right.legend(frameon=False, loc="lower right")
    save_figure(figure, out / "loss", dpi=160)


def draw_trace(out: pathlib.Path, predicted: np.ndarray, true: np.ndarray, *, title: str) -> None:
    """Draw trace.png and trace.svg: the rank of each thinking token by predicted and by true importance.

    Args:
        out: the directory.
        predicted: importance of each token, [n].
        true: their labels, [n].
        title: the picture's.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    axes = figure.add_subplot()
    rank = lambda x: np.argsort(np.argsort(x, kind="stable"), kind="stable") / max(1, len(x) - 1)
    axes.plot(rank(true), color=ORANGE, linewidth=2.2, alpha=0.55, label="true")
    axes.plot(rank(predicted), color=BLUE, linewidth=0.9, label="predicted")
    axes.axhline(0.7, color=GREY, linestyle=":", linewidth=0.8)
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1}
    axes.text(0, 0.71, "top 30 %", color="#444444", fontsize=8, va="bottom", bbox=box, zorder=5)
    axes.set(xlabel="thinking token", ylabel="rank of importance (1: highest)", ylim=(-0.02, 1.02))
    axes.set_title(title, loc="left")
    axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))  # above the lines, beside the title
    save_figure(figure, out / "trace", dpi=160)
