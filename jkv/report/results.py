"""The results of a sweep: results.csv (a row for each run), results.md (tables for each model and task), and the tables
on the screen.

Units: pass_at_1, pass_at_k, maj_at_k, truncation_rate and the differences vs_full and vs_random are fractions in
results.csv, and percent (differences: percentage points) in the tables. tps is generated tokens by seconds of wall time
without compilation; tps_paper is rows times decode steps by seconds of decode time, as DynTS (arXiv:2601.18383) defines
throughput. Columns that end in _low and _high are the ends of 95 % intervals (``jkv.report.statistics``).
"""

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

_SUMMARY_COLUMNS = (
    "retain", "window", "sinks", "pin_prompt", "granularity", "samples", "ungraded", "pass_at_1", "pass_at_1_low",
    "pass_at_1_high", "k", "pass_at_k", "maj_at_k", "maj_at_k_low", "maj_at_k_high", "truncation_rate", "mean_tokens",
    "tokens", "wall_s", "compile_s", "tps", "tps_paper", "evictions", "peak_slots", "mean_slots", "kv_bytes",
    "kv_bytes_full", "batch_size", "recompiles", "device",
)  # fmt: skip
# The policy that others must beat: it evicts at random, but never the prompt.
BASELINE = "random, prompt pinned"
MEAN = "mean"  # stands in the column of the task for the mean over all tasks


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of one run, or the average of the runs of several tasks.

    Attributes:
        model: its name in the sweep.
        label: the policy's name in the sweep.
        budget: KV slots a row; None for the full cache.
        task: the task's name, or MEAN.
        summary: the contents of summary.json, or for an average those that can be averaged.
        correct: for each problem, by its id, 1 for each right and 0 for each wrong sample. Empty for an average.
        parts: the runs of an average, one a task; empty for a single run.
    """

    model: str
    label: str
    budget: int | None
    task: str
    summary: dict[str, Any]
    correct: dict[str, list[float]]
    parts: tuple["Result", ...] = ()

    @property
    def runs(self) -> tuple["Result", ...]:
        """The parts of an average; for a single run, itself."""
        return self.parts or (self,)


def averages(results: Sequence[Result]) -> list[Result]:
    """Average over tasks, for each model, policy and budget that has run on every task.

    Pass@1, maj@k, truncation_rate and mean_slots are means over tasks with equal weights. Tokens, seconds, samples and
    evictions are sums, and tps is the sum of tokens by the sum of seconds. With a single task the averages are its
    results.
    """
    tasks = list(dict.fromkeys(r.task for r in results))
    found = []
    for key in dict.fromkeys((r.model, r.label, r.budget) for r in results):
        parts = tuple(r for r in results if (r.model, r.label, r.budget) == key)
        if len(parts) == len(tasks):
            found.append(parts[0] if len(tasks) == 1 else Result(*key, MEAN, _averaged(parts), {}, parts))
    return found


def _averaged(parts: Sequence[Result]) -> dict[str, Any]:
    """The summary of an average, without the fields that only a single run has."""
    summaries = [r.summary for r in parts]
    # A field that is the same in all runs, else None; their sum; their mean, None if one has no value.
    same: Callable[[str], Any] = lambda name: summaries[0][name] if len({s[name] for s in summaries}) == 1 else None
    total: Callable[[str], Any] = lambda name: sum(s[name] for s in summaries)
    mean = lambda name: None if any(s[name] is None for s in summaries) else total(name) / len(summaries)
    shared = ("policy", "retain", "window", "sinks", "pin_prompt", "granularity", "kv_bytes", "kv_bytes_full",
              "batch_size", "device")  # fmt: skip
    found: dict[str, Any] = {name: same(name) for name in shared}
    found |= {name: total(name) for name in ("samples", "ungraded", "tokens", "wall_s", "compile_s", "evictions")}
    found |= {name: mean(name) for name in ("maj_at_k", "truncation_rate", "mean_slots")}
    found |= {name: max(s[name] for s in summaries) for name in ("peak_slots", "recompiles")}
    found |= {"mean_tokens": found["tokens"] / found["samples"], "tps": found["tokens"] / found["wall_s"]}
    graded = [list(r.correct.values()) for r in parts]
    numbers = mean_over_tasks(graded) if all(graded) else (None, None, None)
    found |= dict(zip(("pass_at_1", "pass_at_1_low", "pass_at_1_high"), numbers, strict=True))
    return found


def difference(result: Result, other: Result | None) -> tuple[float, float, float] | None:
    """Pass@1 of ``result`` minus that of ``other``, paired by problem, over the problems that both have.

    Of two averages it is the mean over tasks.

    Returns:
        The difference and the low and high end of its 95 % interval, as fractions. None without ``other``, or if there
        is a task in which they have no graded problem in common.
    """
    if other is None:
        return None
    ours: list[Correct] = []
    theirs: list[Correct] = []
    for own, others in zip(result.runs, other.runs, strict=True):
        common = [id for id in own.correct if id in others.correct]
        if not common:
            return None
        ours.append([own.correct[id] for id in common])
        theirs.append([others.correct[id] for id in common])
    if len(ours) == 1:
        return paired_difference(ours[0], theirs[0])
    return paired_difference_over_tasks(ours, theirs)


def full_cache_of(result: Result, results: Iterable[Result]) -> Result | None:
    """The result with the full cache for the same model and task; None if there is none."""
    return _find(result, results, lambda other: other.budget is None)


def baseline_of(result: Result, results: Iterable[Result]) -> Result | None:
    """The baseline at the same budget, for the same model and task; None if there is none."""
    return _find(result, results, lambda other: is_baseline(other) and other.budget == result.budget)


def is_baseline(result: Result) -> bool:
    """Whether the policy is random, with the prompt pinned and one keep set for all heads (granularity shared)."""
    s = result.summary
    return s["policy"] == "random" and bool(s["pin_prompt"]) and s["granularity"] == "shared"


def _find(result: Result, results: Iterable[Result], wanted: Callable[[Result], bool]) -> Result | None:
    found = (r for r in results if (r.model, r.task) == (result.model, result.task) and wanted(r))
    return next(found, None)


def write_results(out: pathlib.Path, results: Sequence[Result]) -> None:
    """Write results.csv and results.md, each whole or not at all.

    Args:
        out: the sweep's directory.
        results: of the runs that are finished, in the order of their rows.

    Raises:
        OSError: a file can't be written.
    """
    write_text(out / "results.csv", results_csv(results))
    write_text(out / "results.md", results_markdown(results))


def with_averages(results: Sequence[Result]) -> list[Result]:
    """The runs, followed by their averages over tasks if there are several tasks."""
    return [*results, *(r for r in averages(results) if r.parts)]


def results_csv(results: Sequence[Result]) -> str:
    """The text of results.csv: a row for each run, then for each average over tasks. A missing value is empty."""
    differences = [f"vs_{name}{end}" for name in ("full", "random") for end in ("", "_low", "_high")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "task", "policy", "budget", *_SUMMARY_COLUMNS, *differences])
    rows = with_averages(results)
    for r in rows:
        compared = [x for find in (full_cache_of, baseline_of) for x in difference(r, find(r, rows)) or ("", "", "")]
        summary = {**r.summary, **_largest_k(r.summary)}
        numbers = ["" if summary.get(name) is None else summary[name] for name in _SUMMARY_COLUMNS]
        writer.writerow([r.model, r.task, r.label, "" if r.budget is None else r.budget, *numbers, *compared])
    return text.getvalue()


def _largest_k(summary: dict[str, Any]) -> dict[str, Any]:
    """The largest k for which pass@k was computed except the very largest, and pass@k there.

    At k = n, pass@k only says whether any of the n samples was right. (With a single k, that one.)
    """
    by_k = {int(k): value for k, value in (summary.get("pass_at_k") or {}).items()}
    k = max((k for k in by_k if k < max(by_k)), default=max(by_k, default=None))
    return {"k": k, "pass_at_k": None if k is None else by_k[k]}


def results_markdown(results: Sequence[Result]) -> str:
    """The text of results.md: for each model and task a table each of Pass@1, differences, tokens/s and slots.

    Tables have a row for each policy and a column for each budget. A table without any value is left out.
    """
    parts = []
    rows = with_averages(results)
    for model, task in dict.fromkeys((r.model, r.task) for r in rows):
        group = [r for r in rows if (r.model, r.task) == (model, task)]
        parts.append(f"## {model}, {'mean over tasks' if task == MEAN else task}\n")
        for title, cell in (
            ("Pass@1 in percent [95 % interval]", _pass_at_1),
            (
                "Pass@1 less that of the full cache, in points [paired 95 % interval]",
                functools.partial(_minus_full_cache, results=group),
            ),
            (
                f"Pass@1 less that of {BASELINE}, in points [paired 95 % interval]",
                functools.partial(_minus_baseline, results=group),
            ),
            ("Tokens/s, and the share of samples cut off at the token limit", _speed),
            ("Slots of a row in use, mean and peak", _slots),
        ):
            if any(cell(r) != "-" for r in group):
                parts.append(f"{title}:\n")
                parts.append(_markdown_table(group, cell))
    return "\n".join(parts)


def _markdown_table(results: Sequence[Result], cell: Callable[[Result], str]) -> str:
    """A row for each policy, a column for each budget; the full cache's value stands beside its policy's name."""
    budgets = sorted({r.budget for r in results if r.budget is not None})
    lines = ["| policy | " + " | ".join(map(str, budgets)) + " |", "|---" * (len(budgets) + 1) + "|"]
    for label in dict.fromkeys(r.label for r in results):
        by_budget = {r.budget: r for r in results if r.label == label}
        if None in by_budget:
            if (whole := cell(by_budget[None])) == "-":
                continue
            cells = [""] * len(budgets)
            label += f", whole cache: {whole}"
        else:
            cells = [cell(by_budget[b]) if b in by_budget else "" for b in budgets]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _pass_at_1(r: Result) -> str:
    s = r.summary
    if s["pass_at_1"] is None:
        return "-"
    return f"{100 * s['pass_at_1']:.1f} [{100 * s['pass_at_1_low']:.1f}, {100 * s['pass_at_1_high']:.1f}]"


def _minus_baseline(r: Result, results: Sequence[Result]) -> str:
    return _points(None if is_baseline(r) else difference(r, baseline_of(r, results)))


def _minus_full_cache(r: Result, results: Sequence[Result]) -> str:
    return _points(None if r.budget is None else difference(r, full_cache_of(r, results)))


def _points(found: tuple[float, float, float] | None) -> str:
    """A difference and its interval in percentage points."""
    return "-" if found is None else "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * x for x in found))


def _speed(r: Result) -> str:
    return f"{r.summary['tps']:,.0f}, {100 * r.summary['truncation_rate']:.1f} %"


def _slots(r: Result) -> str:
    return f"{r.summary['mean_slots']:,.0f}, {r.summary['peak_slots']:,}"


def results_tables(results: Sequence[Result]) -> list[Table]:
    """Tables for the screen, one for each model and task, with a row for each policy and budget."""
    tables = []
    rows = with_averages(results)
    for model, task in dict.fromkeys((r.model, r.task) for r in rows):
        table = Table("policy", title=f"{model}, {'mean over tasks' if task == MEAN else task}")
        group = [r for r in rows if (r.model, r.task) == (model, task)]
        paired = any(map(is_baseline, group))
        for heading in ("budget", "Pass@1", *["less random*"] * paired, "tokens/s", "cut off", "slots, mean"):
            table.add_column(heading, justify="right")
        for r in group:
            speed, cut = _speed(r).rsplit(", ", 1)
            budget = "" if r.budget is None else str(r.budget)
            slots = f"{r.summary['mean_slots']:.0f}"
            minus = [_minus_baseline(r, group)] * paired
            table.add_row(r.label, budget, _pass_at_1(r), *minus, speed, cut, slots)
        if paired:
            table.caption = f"* {BASELINE}, at the same budget: paired 95 % interval"
        tables.append(table)
    return tables
