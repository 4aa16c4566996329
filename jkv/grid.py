"""A sweep, end to end: check every cell, run each (weights loaded once a model), write the results after each."""

import contextlib
import dataclasses
import itertools
import json
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

from rich.text import Text

from jkv import termination
from jkv.auto_mesh import mesh_words, spread_over
from jkv.errors import UserError
from jkv.grader import Grader
from jkv.hosts import here, rows_of
from jkv.load import Loaded, known_config, load
from jkv.meeting import Meeting
from jkv.mesh import place_weights
from jkv.output import refuse_other_settings, refuse_run
from jkv.report.board import Board
from jkv.report.figure import draw_figure
from jkv.report.policies_figure import draw_policies
from jkv.report.published import Published, read_published
from jkv.report.results import Result, results_tables, write_results
from jkv.runner import (
    Engines,
    context_of,
    default_dtype,
    identity_of,
    mesh_of,
    new_tokens_of,
    start,
)
from jkv.show import Screen, busy, visible
from jkv.sweep_config import Cell, SweepConfig
from jkv.tasks import Problem, load_task
from jkv.together import Endings

DRAW_EVERY_S = 60.0


def run_sweep(config: SweepConfig, *, show: bool = True) -> list[Result]:
    """Run all cells; results so far are in ``--out`` after each, figures once a minute and at the end. Finished samples
    are not run again. Of several hosts each decodes its share of every cell; the first writes and returns results.

    show: print the tables when done.
    Raises UserError, before anything is decoded, for a cell that can't run.
    """
    hosts = here()
    config = dataclasses.replace(config, quiet=config.quiet or not hosts.first)
    out = pathlib.Path(config.out or "").expanduser()
    cells = list(config.cells())
    overlay = None if config.overlay is None else _overlay(config.overlay, cells)
    screen = Screen(stderr=True, quiet=config.quiet, highlight=False)
    for cell in cells:
        with named(cell):
            model = known_config(cell.config.model)
            cell.config.retention(cell.config.make_policy(), longest=1)
            if cell.config.mesh is None:
                rows_of(cell.config.batch_size, hosts)
            elif model is not None:
                mesh_of(dataclasses.replace(cell.config, quiet=True), model)
    if others := _others(cells, out):  # on every host: all refuse, or none
        said = f"{out} also holds {others} runs of another sweep: results and figures leave them out"
        screen.print(Text(visible(said)), soft_wrap=True)
    meeting = None if hosts.count == 1 else Meeting(hosts, out, [out / cell.directory for cell in cells], config)
    if meeting is not None and meeting.notice:
        screen.print(meeting.notice, soft_wrap=True)
    report = _Report(config, cells, out, overlay, screen, show)
    so_far = lambda: f"{len(report.results)} of {len(cells)} runs are finished: run the same command to continue"
    with termination.saying(so_far):
        _decode(cells, out, meeting, report)
    if meeting is not None:
        meeting.end()
    return report.results


def _others(cells: Sequence[Cell], out: pathlib.Path) -> int:
    """How many runs there are not of these cells. Raises UserError if one of these cells was run with other settings:
    before anything is decoded, and before the results are written anew."""
    refuse_run(out)
    for cell in cells:
        with named(cell):
            refuse_other_settings(out / cell.directory, identity_of(cell.config, default_dtype(cell.config.dtype)))
    ours = {out / cell.directory for cell in cells}
    return sum(path.parent not in ours for path in out.glob("runs/*/*/*/samples.jsonl"))


def _decode(cells: Sequence[Cell], out: pathlib.Path, meeting: Meeting | None, report: "_Report") -> None:
    """Every cell, or this host's share of it; then what is reported of all."""
    board, endings = report.board, Endings(report.add)
    quiet = report.config.quiet
    with Grader() as grader:
        of_weights = lambda cell: (cell.config.model, cell.config.dtype, cell.config.weights)
        begun = 0
        for (model, dtype, weights), group in itertools.groupby(cells, of_weights):
            mine = list(group)
            # One mesh for all runs of a model, chosen for the largest buffer: the weights stay where they are.
            largest = max(mine, key=lambda cell: cell.budget or new_tokens_of(cell.config))
            with named(largest):
                mesh = mesh_of(largest.config)
            words = mesh_words(mesh, spread_over(here(), mesh))
            mine = [dataclasses.replace(c, config=dataclasses.replace(c.config, mesh=words)) for c in mine]
            with busy(f"loading {model}", quiet=quiet):
                place = None if mesh is None else place_weights(mesh)
                loaded = load(model, default_dtype(dtype), place, weights)
                problems = _check(mine, loaded)
            engines = Engines()
            for cell in mine:
                begun += 1
                report.begins(cell, begun)
                directory = out / cell.directory
                with named(cell), board.running(cell, report.number(begun)):
                    settled = dataclasses.replace(cell.config, out=str(directory), quiet=quiet)
                    ending = start(
                        settled, directory, loaded=loaded, problems=problems[cell.config.task], grader=grader,
                        engines=engines, above=board.table() if board.live else None, show=False, meeting=meeting,
                    )  # fmt: skip
                    endings.add((cell, begun), ending)
                    del ending
                    endings.settle(wait=meeting is None)
            del engines, loaded, problems  # the next model needs the memory
        endings.settle(wait=True)
    report.finish()


class _Report:
    """What is told of a sweep while it runs, and written of it. Only on the first host."""

    def __init__(
        self, config: SweepConfig, cells: Sequence[Cell], out: pathlib.Path, overlay: Published | None, screen: Screen,
        show: bool,
    ):  # fmt: skip
        self.config, self.cells, self.out, self.overlay = config, cells, out, overlay
        self.screen, self.show = screen, show
        self.board = Board(cells)
        self.results: list[Result] = []
        self.drawn = time.monotonic()

    def number(self, count: int) -> str:
        return f"{count} of {len(self.cells)}"

    def begins(self, cell: Cell, count: int) -> None:
        """A cell is to be decoded."""
        if not self.board.live:
            self.screen.print(Text(visible(f"{self.number(count)}: {cell.name}")), soft_wrap=True)

    def add(self, what: tuple[Cell, int], summary: dict[str, Any]) -> None:
        """A cell is summed up."""
        cell, count = what
        result = Result(
            cell.model, cell.label, cell.budget, cell.config.task, summary, _correct(self.out / cell.directory)
        )
        self.results.append(result)
        self.board.done(cell, result)
        if not self.board.live:
            self.screen.print(Text(visible(f"{self.number(count)}: {self.board.said(result)}")), soft_wrap=True)
        write_results(self.out, self.results)
        if time.monotonic() - self.drawn > DRAW_EVERY_S and len(self.results) < len(self.cells):
            self._draw()
            self.drawn = time.monotonic()

    def finish(self) -> None:
        """All cells are summed up."""
        if not self.results:
            return
        self._draw()
        if self.show and not self.config.quiet:
            Screen(highlight=False).print(*results_tables(self.results))
            self.screen.print(Text(visible(f"figure, tables and runs are in {self.out}")), soft_wrap=True)

    def _draw(self) -> None:
        hub = {cell.model: cell.config.model for cell in self.cells}
        if self.config.drawn is not None:
            draw_figure(self.out, self.results, self.config.drawn, self.overlay, hub)
        draw_policies(self.out, self.results)


def _overlay(name: str, cells: Sequence[Cell]) -> Published:
    """Published values, of which at least one model here has some."""
    published = read_published(name)
    if not any(published.of(cell.model, cell.config.model) for cell in cells):
        models = ", ".join(dict.fromkeys(cell.model for cell in cells))
        panels = ", ".join(f"{panel} ({its.hf_id})" if its.hf_id else panel for panel, its in published.panels.items())
        mend = f"it has {panels}; call a model so with {{model: DIR, name: {next(iter(published.panels))}}}"
        raise UserError(f"has nothing about {models}", where=f"--overlay {name}", mend=mend)
    return published


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
    rows = map(json.loads, (directory / "samples.jsonl").read_bytes().splitlines())
    for row in sorted(rows, key=lambda row: (row["id"], row["sample"])):
        if row["correct"] is not None:
            correct.setdefault(row["id"], []).append(float(row["correct"]))
    return correct
