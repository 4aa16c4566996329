"""What a sweep found: results.csv (a row a run), results.md (a table a model and task), and the same on the screen."""

import csv
import dataclasses
import io
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rich.table import Table

from jkv.report.statistics import paired_difference

_FROM_SUMMARY = (
    "retain", "window", "sinks", "pin_prompt", "granularity", "samples", "pass_at_1", "pass_at_1_low",
    "pass_at_1_high", "maj_at_k", "truncation_rate", "mean_tokens", "tps", "tps_paper", "evictions", "peak_slots",
    "mean_slots", "kv_bytes", "kv_bytes_full", "batch_size", "recompiles", "device",
)  # fmt: skip
# Called so in a sweep, this is what others are compared with beside the full cache.
BASELINE = "random, prompt pinned"


@dataclasses.dataclass(frozen=True)
class Result:
    """One run. correct: each problem's samples, right (1) or wrong (0)."""

    label: str
    budget: int | None
    task: str
    summary: dict[str, Any]
    correct: dict[str, list[float]]

    @property
    def model(self) -> str:
        return self.summary["model"]


def difference(result: Result, other: Result | None) -> tuple[float, float, float] | None:
    """Pass@1 of ``result`` less that of ``other``, with its 95 % interval, over the problems that both have."""
    if other is None or not result.correct:
        return None
    both = [id for id in result.correct if id in other.correct]
    if not both:
        return None
    return paired_difference([result.correct[id] for id in both], [other.correct[id] for id in both])


def full_of(result: Result, results: Iterable[Result]) -> Result | None:
    """The run with the full cache of the same model and task."""
    return _same(result, results, lambda other: other.budget is None)


def baseline_of(result: Result, results: Iterable[Result]) -> Result | None:
    """Prompt-pinned random at the same budget, model and task."""
    return _same(result, results, lambda other: other.label == BASELINE and other.budget == result.budget)


def _same(result: Result, results: Iterable[Result], wanted: Callable[[Result], bool]) -> Result | None:
    same = (r for r in results if (r.model, r.task) == (result.model, result.task) and wanted(r))
    return next(same, None)


def write_results(out: pathlib.Path, results: Sequence[Result]) -> None:
    """results.csv and results.md, each whole or not at all."""
    _write(out / "results.csv", results_csv(results))
    _write(out / "results.md", results_markdown(results))


def _write(path: pathlib.Path, text: str) -> None:
    scratch = path.with_suffix(path.suffix + ".tmp")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)


def results_csv(results: Sequence[Result]) -> str:
    """A row a run; empty where there is nothing to say."""
    differences = [f"vs_{name}{end}" for name in ("full", "random") for end in ("", "_low", "_high")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "task", "policy", "budget", *_FROM_SUMMARY, *differences])
    for r in results:
        compared = [x for other in (full_of, baseline_of) for x in difference(r, other(r, results)) or ("", "", "")]
        numbers = ["" if r.summary[name] is None else r.summary[name] for name in _FROM_SUMMARY]
        writer.writerow([r.model, r.task, r.label, "" if r.budget is None else r.budget, *numbers, *compared])
    return text.getvalue()


def results_markdown(results: Sequence[Result]) -> str:
    """For each model and task: Pass@1 with its interval, the paired difference from prompt-pinned random, tokens/s."""
    parts = []
    for model, task in dict.fromkeys((r.model, r.task) for r in results):
        mine = [r for r in results if (r.model, r.task) == (model, task)]
        parts.append(f"## {model}, {task}\n")
        for title, cell in (
            ("Pass@1 in percent [95 % interval]", _pass),
            (f"Pass@1 less that of {BASELINE}, in points [paired 95 % interval]", lambda r: _less(r, results)),
            ("Tokens/s, and the share of samples cut off at the token limit", _speed),
        ):
            parts.append(f"{title}:\n")
            parts.append(_grid(mine, cell))
    return "\n".join(parts)


def _grid(results: Sequence[Result], cell: Callable[[Result], str]) -> str:
    budgets = sorted({r.budget for r in results if r.budget is not None})
    lines = ["| policy | " + " | ".join(map(str, budgets)) + " |", "|---" * (len(budgets) + 1) + "|"]
    for label in dict.fromkeys(r.label for r in results):
        mine = {r.budget: r for r in results if r.label == label}
        if None in mine:
            shown = [cell(mine[None])] + [""] * (len(budgets) - 1)
            label += " (whole cache)"
        else:
            shown = [cell(mine[b]) if b in mine else "" for b in budgets]
        lines.append(f"| {label} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def _pass(r: Result) -> str:
    s = r.summary
    if s["pass_at_1"] is None:
        return "-"
    return f"{100 * s['pass_at_1']:.1f} [{100 * s['pass_at_1_low']:.1f}, {100 * s['pass_at_1_high']:.1f}]"


def _less(r: Result, results: Sequence[Result]) -> str:
    found = difference(r, baseline_of(r, results)) if r.label != BASELINE else None
    return "-" if found is None else "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * x for x in found))


def _speed(r: Result) -> str:
    return f"{r.summary['tps']:,.0f}, {100 * r.summary['truncation_rate']:.1f} %"


def results_tables(results: Sequence[Result]) -> list[Table]:
    """For the screen: a table a model and task."""
    tables = []
    for model, task in dict.fromkeys((r.model, r.task) for r in results):
        table = Table("policy", title=f"{model}, {task}")
        for heading in ("budget", "Pass@1", "less random*", "tokens/s", "cut off", "slots, mean"):
            table.add_column(heading, justify="right")
        for r in results:
            if (r.model, r.task) == (model, task):
                speed, cut = _speed(r).rsplit(", ", 1)
                budget = "" if r.budget is None else str(r.budget)
                slots = f"{r.summary['mean_slots']:.0f}"
                table.add_row(r.label, budget, _pass(r), _less(r, results), speed, cut, slots)
        table.caption = f"* {BASELINE}, at the same budget: paired 95 % interval"
        tables.append(table)
    return tables
