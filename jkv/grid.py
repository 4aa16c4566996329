"""A sweep, end to end: check every cell, run each (weights loaded once a model), write the results after each."""

import contextlib
import dataclasses
import itertools
import json
import pathlib
import time
from collections.abc import Iterator, Sequence

from rich.text import Text

from jkv.auto_mesh import mesh_words
from jkv.errors import UserError
from jkv.grader import Grader
from jkv.load import Loaded, load
from jkv.mesh import place_weights
from jkv.report.board import Board
from jkv.report.figure import draw_figure
from jkv.report.policies_figure import draw_policies
from jkv.report.published import Published, read_published
from jkv.report.results import Result, results_tables, write_results
from jkv.runner import Engines, context_of, default_dtype, mesh_of, new_tokens_of, run
from jkv.show import Screen, busy, visible
from jkv.sweep_config import Cell, SweepConfig
from jkv.tasks import Problem, load_task

DRAW_EVERY_S = 60.0


def run_sweep(config: SweepConfig, *, show: bool = True) -> list[Result]:
    """Run all cells; results so far are in ``--out`` after each, figures once a minute and at the end. Finished samples
    are not run again.

    show: print the tables when done.
    Raises UserError, before anything is decoded, for a cell that can't run.
    """
    out = pathlib.Path(config.out or "").expanduser()
    cells = list(config.cells())
    overlay = None if config.overlay is None else _overlay(config.overlay, cells)
    screen = Screen(stderr=True, quiet=config.quiet, highlight=False)
    for cell in cells:
        with named(cell):
            cell.config.retention(cell.config.make_policy(), longest=1)
    board = Board(cells)
    results: list[Result] = []
    drawn = time.monotonic()
    with Grader() as grader:
        of_weights = lambda cell: (cell.config.model, cell.config.dtype, cell.config.weights)
        for (model, dtype, weights), group in itertools.groupby(cells, of_weights):
            mine = list(group)
            # One mesh for all runs of a model, chosen for the largest buffer: the weights stay where they are.
            largest = max(mine, key=lambda cell: cell.budget or new_tokens_of(cell.config))
            with named(largest):
                mesh = mesh_of(largest.config)
            mine = [dataclasses.replace(c, config=dataclasses.replace(c.config, mesh=mesh_words(mesh))) for c in mine]
            with busy(f"loading {model}", quiet=config.quiet):
                place = None if mesh is None else place_weights(mesh)
                loaded = load(model, default_dtype(dtype), place, weights)
                problems = _check(mine, loaded)
            engines = Engines()
            for cell in mine:
                number = f"{len(results) + 1} of {len(cells)}"
                if not board.live:
                    screen.print(Text(visible(f"{number}: {cell.name}")), soft_wrap=True)
                directory = out / cell.directory
                with named(cell), board.running(cell, number):
                    settled = dataclasses.replace(cell.config, out=str(directory))
                    summary = run(
                        settled, loaded=loaded, problems=problems[cell.config.task], grader=grader, engines=engines,
                        above=board.table() if board.live else None, show=False,
                    )  # fmt: skip
                result = Result(
                    cell.model, cell.label, cell.budget, cell.config.task, summary, _correct(directory)
                )  # fmt: skip
                results.append(result)
                board.done(cell, result)
                if not board.live:
                    screen.print(Text(visible(f"{number}: {board.said(result)}")), soft_wrap=True)
                write_results(out, results)
                if time.monotonic() - drawn > DRAW_EVERY_S and len(results) < len(cells):
                    _draw(out, config, results, overlay)
                    drawn = time.monotonic()
            del engines, loaded, problems  # the next model needs the memory
    _draw(out, config, results, overlay)
    if show and not config.quiet:
        Screen(highlight=False).print(*results_tables(results))
        screen.print(Text(visible(f"figure, tables and runs are in {out}")), soft_wrap=True)
    return results


def _overlay(name: str, cells: Sequence[Cell]) -> Published:
    """Published values, of which at least one model here has some."""
    published = read_published(name)
    if not any(published.of(cell.model, cell.config.model) for cell in cells):
        models = ", ".join(dict.fromkeys(cell.model for cell in cells))
        panels = ", ".join(f"{panel} ({its.hf_id})" if its.hf_id else panel for panel, its in published.panels.items())
        mend = f"it has {panels}; call a model so with {{model: DIR, name: {next(iter(published.panels))}}}"
        raise UserError(f"has nothing about {models}", where=f"--overlay {name}", mend=mend)
    return published


def _draw(out: pathlib.Path, config: SweepConfig, results: Sequence[Result], overlay: Published | None) -> None:
    hub = {cell.model: cell.config.model for cell in config.cells()}
    if config.drawn is not None:
        draw_figure(out, results, config.drawn, overlay, hub)
    draw_policies(out, results)


@contextlib.contextmanager
def named(cell: Cell) -> Iterator[None]:
    """Adds the cell's name to a UserError."""
    try:
        yield
    except UserError as error:
        where = f"{cell.name}: {error.where}" if error.where else cell.name
        raise UserError(error.what, where=where, mend=error.mend) from None


def _check(cells: Sequence[Cell], loaded: Loaded) -> dict[str, list[Problem]]:
    """Each task's problems. Every cell: what its policy needs is there, and every prompt fits its budget."""
    problems = {
        cell.config.task: load_task(cell.config.task, loaded, limit=cell.config.limit)
        for cell in {cell.config.task: cell for cell in cells}.values()
    }
    for cell in cells:
        with named(cell):
            config, its = cell.config, problems[cell.config.task]
            policy, _ = config.make_policy().bind(context_of(config, loaded))
            longest = max(len(p.prompt_ids) for p in its) + new_tokens_of(config)
            rule = config.retention(policy, longest=longest)
            for problem in its:
                rule.check_prompt(len(problem.prompt_ids), problem.where)
    return problems


def _correct(directory: pathlib.Path) -> dict[str, list[float]]:
    """Of a finished run, each problem's samples: right or wrong. Ungraded ones are left out.

    In order of ids and samples, not of finishing: a bootstrap draws the same for a run that was stopped on its way.
    """
    correct: dict[str, list[float]] = {}
    rows = map(json.loads, (directory / "samples.jsonl").read_text(encoding="utf-8").splitlines())
    for row in sorted(rows, key=lambda row: (row["id"], row["sample"])):
        if row["correct"] is not None:
            correct.setdefault(row["id"], []).append(float(row["correct"]))
    return correct
