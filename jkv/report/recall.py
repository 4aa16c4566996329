"""Table and figure of the memory probe: how often a fact is recalled, by the evictions since it was stated."""

import csv
import dataclasses
import io
import pathlib
from collections.abc import Sequence

import numpy as np

from jkv.config.probe import ProbeConfig
from jkv.files.whole import write_text
from jkv.report.picture_files import save_figure
from jkv.report.statistics import interval

# Evictions, first and last. The last bin has no upper end.
BINS = ((0, 9), (10, 19), (20, 29), (30, 39), (40, 10_000))


@dataclasses.dataclass(frozen=True)
class Recall:
    """The results of one policy on n probes.

    Attributes:
        label: the policy's name.
        between: [n], integers: evictions between the fact and the question.
        right: [n], booleans: whether the fact was recalled.
    """

    label: str
    between: np.ndarray
    right: np.ndarray

    def of_bin(self, low: int, high: int) -> tuple[float, int]:
        """Of the probes with ``low`` to ``high`` evictions in between: the fraction recalled (NaN if there are none),
        and their number."""
        within = (self.between >= low) & (self.between <= high)
        return (float(self.right[within].mean()) if within.any() else float("nan")), int(within.sum())


def write_recall(out: pathlib.Path, results: Sequence[Recall], config: ProbeConfig) -> None:
    """Write probe.csv (a row for each policy and bin; ``recalled`` is a fraction), probe.md, probe.png and probe.svg.

    Args:
        out: directory, made if missing.
        results: of the policies that are finished, at least one.
        config: of the probe; it is named in the figure's title.

    Raises:
        OSError: a file can't be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["policy", "evictions_from", "evictions_to", "probes", "recalled"])
    for result in results:
        for low, high in BINS:
            share, n = result.of_bin(low, high)
            writer.writerow([result.label, low, "" if high == BINS[-1][1] else high, n, round(share, 4)])
    write_text(out / "probe.csv", text.getvalue())
    write_text(out / "probe.md", recall_markdown(results))
    draw_recall(out, results, config)


def _ranked(results: Sequence[Recall]) -> list[Recall]:
    """The full cache first, then policies by their recall in the last bin, then by their recall over all probes."""
    last = BINS[-1]
    order = lambda r: (r.label != "full", -np.nan_to_num(r.of_bin(*last)[0]), -r.right.mean())
    return sorted(results, key=order)


def _bin_name(low: int, high: int) -> str:
    return f"{low}-{high}" if high < BINS[-1][1] else f"{low}+"


def recall_markdown(results: Sequence[Recall]) -> str:
    """The table in Markdown: recall in percent, a row for each policy, a column for each bin.

    The last column has the recall over all probes with its 95 % interval: the percentile bootstrap over probes, 2,000
    draws.
    """
    counts = [results[0].of_bin(*b)[1] for b in BINS]
    heads = " | ".join(f"{_bin_name(*b)} (n={n})" for b, n in zip(BINS, counts, strict=True))
    lines = [f"| evictions in between | {heads} | all |", "|---" * (len(BINS) + 2) + "|"]
    for r in _ranked(results):
        low, high = interval([[float(x)] for x in r.right], draws=2000)
        cells = " | ".join(f"{100 * r.of_bin(*b)[0]:.0f}" for b in BINS)
        lines.append(f"| {r.label} | {cells} | {100 * r.right.mean():.0f} [{100 * low:.0f}, {100 * high:.0f}] |")
    return "\n".join(lines) + "\n"


def draw_recall(out: pathlib.Path, results: Sequence[Recall], config: ProbeConfig) -> None:
    """Write probe.png and probe.svg: a heat map of recall in percent, a row for each policy, a column for each bin.

    Args:
        out: directory.
        results: of the policies, at least one.
        config: of the probe; it is named in the title.
    """
    from matplotlib.figure import Figure

    ranked = _ranked(results)
    values = np.array([[100 * r.of_bin(*b)[0] for b in BINS] for r in ranked])
    figure = Figure(figsize=(6.4, 1.6 + 0.28 * len(ranked)), layout="constrained")
    axes = figure.add_subplot()
    # One hue from pale to dark: readable in grey, and by readers with most kinds of colour blindness.
    image = axes.imshow(values, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            axes.text(
                column, row, f"{value:.0f}", ha="center", va="center", fontsize=8,
                color="white" if value > 60 else "black",
            )  # fmt: skip
    axes.set_xticks(range(len(BINS)), [_bin_name(*b) for b in BINS])
    axes.set_yticks(range(len(ranked)), [r.label for r in ranked])
    axes.set_xlabel("evictions between the fact and the question")
    pinned = "prompt pinned" if config.pin_prompt else "no prompt pinned"
    axes.set_title(
        f"Facts recalled (%), {config.model}\nbudget {config.budget}, retain {config.retain}, {pinned}", fontsize=10
    )
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label="recalled (%)")
    save_figure(figure, out / "probe", dpi=160)
