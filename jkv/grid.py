"""A sweep, end to end: check every cell, run each (weights loaded once a model), write the results after each."""

import dataclasses
import itertools
import json
import pathlib
from typing import Any

from rich.text import Text

from jkv.auto_mesh import mesh_words
from jkv.errors import UserError
from jkv.load import Loaded, load
from jkv.mesh import place_weights
from jkv.report.results import Result, results_tables, write_results
from jkv.run_config import DecodeConfig
from jkv.runner import context_of, default_dtype, mesh_of, new_tokens_of, run
from jkv.show import Screen, busy, visible
from jkv.sweep_config import Cell, SweepConfig
from jkv.tasks import load_task


def run_sweep(config: SweepConfig) -> list[Result]:
    """Run all cells; results so far are in ``--out`` after each. Finished samples are not run again.

    Raises UserError, before anything is decoded, for a cell that can't run.
    """
    out = pathlib.Path(config.out or "").expanduser()
    cells = list(config.cells())
    screen = Screen(stderr=True, quiet=config.quiet, highlight=False)
    for cell in cells:
        with _named(cell):
            cell.config.retention(cell.config.make_policy(), longest=1)
    results: list[Result] = []
    for model, group in itertools.groupby(cells, lambda cell: cell.config.model):
        mine = list(group)
        # One mesh for all runs of a model, chosen for the largest buffer: the weights stay where they are.
        largest = max(mine, key=lambda cell: cell.budget or new_tokens_of(cell.config))
        with _named(largest):
            mesh = mesh_of(largest.config)
        mine = [dataclasses.replace(c, config=dataclasses.replace(c.config, mesh=mesh_words(mesh))) for c in mine]
        with busy(f"loading {model}", quiet=config.quiet):
            shard = None if mesh is None else place_weights(mesh)
            loaded = load(model, default_dtype(config.dtype), shard, config.weights)
        _check(mine, loaded)
        for cell in mine:
            text = f"{len(results) + 1} of {len(cells)}: {_name(cell)}"
            screen.print(Text(visible(text)), soft_wrap=True)
            directory = out / cell.directory
            with _named(cell):
                settled = dataclasses.replace(cell.config, out=str(directory))
                summary = run(settled, loaded=loaded, show=False)
            results.append(Result(cell.label, cell.budget, cell.config.task, summary, _correct(directory)))
            write_results(out, results)
    if not config.quiet:
        Screen(highlight=False).print(*results_tables(results))
    return results


def _name(cell: Cell) -> str:
    budget = "" if cell.budget is None else f" at {cell.budget}"
    return f"{cell.config.model}, {cell.config.task}, {cell.label}{budget}"


class _named:
    """Adds the cell's name to a UserError."""

    def __init__(self, cell: Cell):
        self.cell = cell

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        if isinstance(error, UserError):
            where = f"{_name(self.cell)}: {error.where}" if error.where else _name(self.cell)
            raise UserError(error.what, where=where, mend=error.mend) from None


def _check(cells: list[Cell], loaded: Loaded) -> None:
    """Every cell: what its policy needs is there, and every prompt fits its budget."""
    for task, group in itertools.groupby(cells, lambda cell: cell.config.task):
        mine = list(group)
        problems = load_task(task, loaded, limit=mine[0].config.limit)
        for cell in mine:
            with _named(cell):
                config: DecodeConfig = cell.config
                policy, _ = config.make_policy().bind(context_of(config, loaded))
                longest = max(len(p.prompt_ids) for p in problems) + new_tokens_of(config)
                rule = config.retention(policy, longest=longest)
                for problem in problems:
                    rule.check_prompt(len(problem.prompt_ids), problem.where)


def _correct(directory: pathlib.Path) -> dict[str, list[float]]:
    """Of a finished run, each problem's samples: right or wrong. Ungraded ones are left out."""
    correct: dict[str, list[float]] = {}
    for line in (directory / "samples.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["correct"] is not None:
            correct.setdefault(row["id"], []).append(float(row["correct"]))
    return correct
