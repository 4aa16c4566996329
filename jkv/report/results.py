"""What a sweep found: results.csv (a row a run), results.md (a table a model and task), and the same on the screen."""

import csv
import dataclasses
import functools
import io
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rich.table import Table

from jkv.files.whole import write_text
from jkv.report.statistics import (
    Correct,
    mean_over_tasks,
    paired_difference,
    paired_difference_over_tasks,
)

_FROM_SUMMARY = (
    "retain", "window", "sinks", "pin_prompt", "granularity", "samples", "ungraded", "pass_at_1", "pass_at_1_low",
    "pass_at_1_high", "k", "pass_at_k", "maj_at_k", "maj_at_k_low", "maj_at_k_high", "truncation_rate", "mean_tokens",
    "tokens", "wall_s", "compile_s", "tps", "tps_paper", "evictions", "peak_slots", "mean_slots", "kv_bytes",
    "kv_bytes_full", "batch_size", "recompiles", "device",
)  # fmt: skip
BASELINE = "random, prompt pinned"
MEAN = "mean"  # in the place of a task: all of them, with equal weight


@dataclasses.dataclass(frozen=True)
class Result:
    """One run, or the average of several. model and label: what model and policy are called in the sweep.

    correct: each problem's samples, right (1) or wrong (0); of an average a task's dict each.
    """

    model: str
    label: str
    budget: int | None
    task: str
    summary: dict[str, Any]
    correct: dict[str, list[float]]
    parts: tuple["Result", ...] = ()

    @property
    def tasks(self) -> tuple["Result", ...]:
        """The runs that this is made of."""
        return self.parts or (self,)


def averages(results: Sequence[Result]) -> list[Result]:
    """Of each model, policy and budget that has run on every task: Pass@1 averaged over tasks with equal weight.

    Tokens a second are all tasks' tokens by all tasks' time. With a single task these are its results.
    """
    tasks = list(dict.fromkeys(r.task for r in results))
    found = []
    for key in dict.fromkeys((r.model, r.label, r.budget) for r in results):
        parts = tuple(r for r in results if (r.model, r.label, r.budget) == key)
        if len(parts) == len(tasks):
            found.append(parts[0] if len(tasks) == 1 else Result(*key, MEAN, _averaged(parts), {}, parts))
    return found


def _averaged(parts: Sequence[Result]) -> dict[str, Any]:
    """A summary over tasks, without what only a single run has."""
    summaries = [r.summary for r in parts]
    same: Callable[[str], Any] = lambda name: summaries[0][name] if len({s[name] for s in summaries}) == 1 else None
    total: Callable[[str], Any] = lambda name: sum(s[name] for s in summaries)
    mean = lambda name: None if any(s[name] is None for s in summaries) else total(name) / len(summaries)
    of_all = ("policy", "retain", "window", "sinks", "pin_prompt", "granularity", "kv_bytes", "kv_bytes_full",
              "batch_size", "device")  # fmt: skip
    found: dict[str, Any] = {name: same(name) for name in of_all}
    found |= {name: total(name) for name in ("samples", "ungraded", "tokens", "wall_s", "compile_s", "evictions")}
    found |= {name: mean(name) for name in ("maj_at_k", "truncation_rate", "mean_slots")}
    found |= {name: max(s[name] for s in summaries) for name in ("peak_slots", "recompiles")}
    found |= {"mean_tokens": found["tokens"] / found["samples"], "tps": found["tokens"] / found["wall_s"]}
    graded = [list(r.correct.values()) for r in parts]
    numbers = mean_over_tasks(graded) if all(graded) else (None, None, None)
    found |= dict(zip(("pass_at_1", "pass_at_1_low", "pass_at_1_high"), numbers, strict=True))
    return found


def difference(result: Result, other: Result | None) -> tuple[float, float, float] | None:
    """Pass@1 of ``result`` less that of ``other``, with its 95 % interval, over the problems that both have."""
    if other is None:
        return None
    ours: list[Correct] = []
    theirs: list[Correct] = []
    for a, b in zip(result.tasks, other.tasks, strict=True):
        both = [id for id in a.correct if id in b.correct]
        if not both:
            return None
        ours.append([a.correct[id] for id in both])
        theirs.append([b.correct[id] for id in both])
    if len(ours) == 1:
        return paired_difference(ours[0], theirs[0])
    return paired_difference_over_tasks(ours, theirs)


def full_of(result: Result, results: Iterable[Result]) -> Result | None:
    """The run with the full cache of the same model and task."""
    return _same(result, results, lambda other: other.budget is None)


def baseline_of(result: Result, results: Iterable[Result]) -> Result | None:
    """Prompt-pinned random at the same budget, model and task."""
    return _same(result, results, lambda other: is_baseline(other) and other.budget == result.budget)


def is_baseline(result: Result) -> bool:
    """Whether it is random with the prompt pinned, and nothing else changed."""
    s = result.summary
    return s["policy"] == "random" and bool(s["pin_prompt"]) and s["granularity"] == "shared"


def _same(result: Result, results: Iterable[Result], wanted: Callable[[Result], bool]) -> Result | None:
    same = (r for r in results if (r.model, r.task) == (result.model, result.task) and wanted(r))
    return next(same, None)


def write_results(out: pathlib.Path, results: Sequence[Result]) -> None:
    """results.csv and results.md, each whole or not at all."""
    write_text(out / "results.csv", results_csv(results))
    write_text(out / "results.md", results_markdown(results))


def with_averages(results: Sequence[Result]) -> list[Result]:
    """The runs, and after them their averages over tasks if there are several tasks."""
    return [*results, *(r for r in averages(results) if r.parts)]


def results_csv(results: Sequence[Result]) -> str:
    """A row a run; empty where there is nothing to say. With several tasks also a row for their average."""
    differences = [f"vs_{name}{end}" for name in ("full", "random") for end in ("", "_low", "_high")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "task", "policy", "budget", *_FROM_SUMMARY, *differences])
    everything = with_averages(results)
    for r in everything:
        compared = [x for other in (full_of, baseline_of) for x in difference(r, other(r, everything)) or ("", "", "")]
        summary = {**r.summary, **_largest_k(r.summary)}
        numbers = ["" if summary.get(name) is None else summary[name] for name in _FROM_SUMMARY]
        writer.writerow([r.model, r.task, r.label, "" if r.budget is None else r.budget, *numbers, *compared])
    return text.getvalue()


def _largest_k(summary: dict[str, Any]) -> dict[str, Any]:
    """pass@k at the largest k below the number of samples that was computed: at k = samples it is but 'any right'."""
    by_k = {int(k): value for k, value in (summary.get("pass_at_k") or {}).items()}
    k = max((k for k in by_k if k < max(by_k)), default=max(by_k, default=None))
    return {"k": k, "pass_at_k": None if k is None else by_k[k]}


def results_markdown(results: Sequence[Result]) -> str:
    """For each model and task: Pass@1 with its interval, paired differences, tokens/s, slots."""
    parts = []
    everything = with_averages(results)
    for model, task in dict.fromkeys((r.model, r.task) for r in everything):
        mine = [r for r in everything if (r.model, r.task) == (model, task)]
        parts.append(f"## {model}, {'mean over tasks' if task == MEAN else task}\n")
        for title, cell in (
            ("Pass@1 in percent [95 % interval]", _pass),
            (
                "Pass@1 less that of the full cache, in points [paired 95 % interval]",
                functools.partial(_less_full, results=mine),
            ),
            (
                f"Pass@1 less that of {BASELINE}, in points [paired 95 % interval]",
                functools.partial(_less, results=mine),
            ),
            ("Tokens/s, and the share of samples cut off at the token limit", _speed),
            ("Slots of a row in use, mean and peak", _slots),
        ):
            if any(cell(r) != "-" for r in mine):
                parts.append(f"{title}:\n")
                parts.append(_grid(mine, cell))
    return "\n".join(parts)


def _grid(results: Sequence[Result], cell: Callable[[Result], str]) -> str:
    budgets = sorted({r.budget for r in results if r.budget is not None})
    lines = ["| policy | " + " | ".join(map(str, budgets)) + " |", "|---" * (len(budgets) + 1) + "|"]
    for label in dict.fromkeys(r.label for r in results):
        mine = {r.budget: r for r in results if r.label == label}
        if None in mine:
            if (whole := cell(mine[None])) == "-":
                continue
            shown = [""] * len(budgets)
            label += f", whole cache: {whole}"
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
    return _points(None if is_baseline(r) else difference(r, baseline_of(r, results)))


def _less_full(r: Result, results: Sequence[Result]) -> str:
    return _points(None if r.budget is None else difference(r, full_of(r, results)))


def _points(found: tuple[float, float, float] | None) -> str:
    return "-" if found is None else "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * x for x in found))


def _speed(r: Result) -> str:
    return f"{r.summary['tps']:,.0f}, {100 * r.summary['truncation_rate']:.1f} %"


def _slots(r: Result) -> str:
    return f"{r.summary['mean_slots']:,.0f}, {r.summary['peak_slots']:,}"


def results_tables(results: Sequence[Result]) -> list[Table]:
    """For the screen: a table a model and task."""
    tables = []
    everything = with_averages(results)
    for model, task in dict.fromkeys((r.model, r.task) for r in everything):
        table = Table("policy", title=f"{model}, {'mean over tasks' if task == MEAN else task}")
        mine = [r for r in everything if (r.model, r.task) == (model, task)]
        paired = any(map(is_baseline, mine))
        for heading in ("budget", "Pass@1", *["less random*"] * paired, "tokens/s", "cut off", "slots, mean"):
            table.add_column(heading, justify="right")
        for r in mine:
            speed, cut = _speed(r).rsplit(", ", 1)
            budget = "" if r.budget is None else str(r.budget)
            slots = f"{r.summary['mean_slots']:.0f}"
            table.add_row(r.label, budget, _pass(r), *[_less(r, mine)] * paired, speed, cut, slots)
        if paired:
            table.caption = f"* {BASELINE}, at the same budget: paired 95 % interval"
        tables.append(table)
    return tables
