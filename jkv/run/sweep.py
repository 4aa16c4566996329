"""A sweep, end to end: check every cell, decode each (weights are loaded once a model), write results after each."""

import dataclasses
import itertools
import pathlib
from collections.abc import Sequence

from rich.text import Text

from jkv.config.sweep import Cell, SweepConfig
from jkv.distributed.choose_mesh import mesh_text, spread_over
from jkv.distributed.hosts import here, rows_per_replica
from jkv.distributed.weights import place_weights
from jkv.errors import UserError
from jkv.files.run_files import SAMPLES
from jkv.grading import Grader
from jkv.load import Loaded, default_dtype, known_config, load
from jkv.report.published import Published, read_published
from jkv.report.results import Result
from jkv.run.decode import Display, decode_run
from jkv.run.directory import refuse_other_settings, refuse_run
from jkv.run.engines import Engines
from jkv.run.host_meeting import Meeting
from jkv.run.host_shares import UnclosedRuns
from jkv.run.identity import identity_of
from jkv.run.opening import AtHand, policy_context, run_mesh
from jkv.run.sweep_report import SweepReport
from jkv.tasks import Problem, load_task
from jkv.terminal import termination
from jkv.terminal.screen import Screen, busy
from jkv.terminal.text import visible


def run_sweep(config: SweepConfig, *, show: bool = True) -> list[Result]:
    """Run all cells of a sweep. Finished samples do not run again.

    Results are written to ``--out`` after each cell, figures once a minute and at the end. Of several hosts each
    decodes its share of every cell, and the first writes the results.

    Args:
        config: the sweep.
        show: print the tables at the end.

    Returns:
        A result for each cell, in order; empty on hosts other than the first.

    Raises:
        UserError: a cell can't run, or ``--out`` holds something else. Almost all of this is found before anything is
            decoded; a model's prompts are checked when it is loaded.
    """
    hosts = here()
    config = dataclasses.replace(config, quiet=config.quiet or not hosts.first)
    out = pathlib.Path(config.out or "").expanduser()
    cells = list(config.cells())
    overlay = None if config.overlay is None else _overlay(config.overlay, cells)
    screen = Screen(stderr=True, quiet=config.quiet, highlight=False)
    for cell in cells:
        with cell.named():
            model = known_config(cell.config.model)
            cell.config.retention(cell.config.make_policy(), longest=1)
            if cell.config.mesh is None:
                rows_per_replica(cell.config.batch_size, hosts)
            elif model is not None:
                run_mesh(dataclasses.replace(cell.config, quiet=True), model)
    if others := _count_other_runs(cells, out):  # called on every host, so that all refuse or none
        text = f"{out} also holds {others} runs of another sweep: results and figures leave them out"
        screen.print(Text(visible(text)), soft_wrap=True)
    meeting = None if hosts.count == 1 else Meeting(hosts, out, [out / cell.directory for cell in cells], config)
    if meeting is not None and meeting.notice:
        screen.print(meeting.notice, soft_wrap=True)
    report = SweepReport(config, cells, out, overlay, screen, show)
    last_line = lambda: f"{len(report.results)} of {len(cells)} runs are finished: run the same command to continue"
    with termination.last_line(last_line):
        _decode(cells, out, meeting, report)
    if meeting is not None:
        meeting.end()
    return report.results


def _count_other_runs(cells: Sequence[Cell], out: pathlib.Path) -> int:
    """How many runs in ``out`` are of no cell of this sweep.

    Raises:
        UserError: a cell was run with other settings. Raised before the results are written anew.
    """
    refuse_run(out)
    for cell in cells:
        with cell.named():
            refuse_other_settings(out / cell.directory, identity_of(cell.config, default_dtype(cell.config.dtype)))
    ours = {out / cell.directory for cell in cells}
    return sum(path.parent not in ours for path in out.glob(f"runs/*/*/*/{SAMPLES}"))


def _decode(cells: Sequence[Cell], out: pathlib.Path, meeting: Meeting | None, report: SweepReport) -> None:
    """Decode every cell, or this host's share of it, and report each when all hosts' samples of it are there."""
    board, unclosed = report.board, UnclosedRuns(report.add)
    quiet = report.config.quiet
    with Grader() as grader:
        of_weights = lambda cell: (cell.config.model, cell.config.dtype, cell.config.weights)
        begun = 0
        for (model, dtype, weights), group in itertools.groupby(cells, of_weights):
            of_model = list(group)
            # All runs of a model share one mesh, chosen for the largest buffer: its weights need not move.
            largest = max(of_model, key=lambda cell: cell.budget or cell.config.new_tokens)
            with largest.named():
                mesh = run_mesh(largest.config)
            sizes = mesh_text(mesh, spread_over(here(), mesh))
            of_model = [dataclasses.replace(c, config=dataclasses.replace(c.config, mesh=sizes)) for c in of_model]
            with busy(f"loading {model}", quiet=quiet):
                place = None if mesh is None else place_weights(mesh)
                loaded = load(model, default_dtype(dtype), place, weights)
                problems = _load_tasks(of_model, loaded)
                _check_prompts(of_model, loaded, problems)
            engines = Engines()
            for cell in of_model:
                begun += 1
                report.begins(cell, begun)
                directory = out / cell.directory
                with cell.named(), board.running(cell, report.number(begun)):
                    config = dataclasses.replace(cell.config, out=str(directory), quiet=quiet)
                    at_hand = AtHand(loaded, problems[cell.config.task], engines)
                    display = Display(above=board.table() if board.live else None)
                    run = decode_run(config, directory, at_hand, display, grader=grader, meeting=meeting)
                    unclosed.add((cell, begun), run)
                    del at_hand
                    unclosed.close(wait=meeting is None)
            del engines, loaded, problems  # the next model needs their memory
        unclosed.close(wait=True)
    report.finish()


def _overlay(name: str, cells: Sequence[Cell]) -> Published:
    """Published values to draw beside this sweep's. Raises UserError if they have none of its models."""
    published = read_published(name)
    if not any(published.of(cell.model, cell.config.model) for cell in cells):
        models = ", ".join(dict.fromkeys(cell.model for cell in cells))
        panels = ", ".join(f"{panel} ({its.hf_id})" if its.hf_id else panel for panel, its in published.panels.items())
        mend = f"it has {panels}; call a model so with {{model: DIR, name: {next(iter(published.panels))}}}"
        raise UserError(f"has nothing about {models}", where=f"--overlay {name}", mend=mend)
    return published


def _load_tasks(cells: Sequence[Cell], loaded: Loaded) -> dict[str, list[Problem]]:
    """The problems of each task, by its name. Raises UserError if one can't be read."""
    one_of_task = {cell.config.task: cell for cell in cells}
    return {
        task: load_task(task, loaded.tokenizer, model=loaded.name, limit=cell.config.limit)
        for task, cell in one_of_task.items()
    }


def _check_prompts(cells: Sequence[Cell], loaded: Loaded, problems: dict[str, list[Problem]]) -> None:
    """Raise UserError if a cell's policy can't be bound to the model, or a prompt doesn't fit a cell's budget."""
    for cell in cells:
        with cell.named():
            config, its = cell.config, problems[cell.config.task]
            policy, _ = config.make_policy().bind(policy_context(config, loaded))
            longest = max(len(p.prompt_ids) for p in its) + config.new_tokens
            rule = config.retention(policy, longest=longest)
            for problem in its:
                rule.check_prompt(len(problem.prompt_ids), problem.where)
