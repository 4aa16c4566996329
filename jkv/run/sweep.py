"""A sweep, end to end: check every cell, run each (weights loaded once a model), write the results after each."""

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
from jkv.grading import Grader
from jkv.load import Loaded, default_dtype, known_config, load
from jkv.report.published import Published, read_published
from jkv.report.results import Result
from jkv.run.decode import Display, start
from jkv.run.directory import refuse_other_settings, refuse_run
from jkv.run.engines import Engines
from jkv.run.host_meeting import Meeting
from jkv.run.host_shares import Endings
from jkv.run.identity import identity_of
from jkv.run.opening import AtHand, policy_context, run_mesh
from jkv.run.sweep_report import SweepReport
from jkv.tasks import Problem, load_task
from jkv.terminal import termination
from jkv.terminal.screen import Screen, busy
from jkv.terminal.text import visible


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
        with cell.named():
            model = known_config(cell.config.model)
            cell.config.retention(cell.config.make_policy(), longest=1)
            if cell.config.mesh is None:
                rows_per_replica(cell.config.batch_size, hosts)
            elif model is not None:
                run_mesh(dataclasses.replace(cell.config, quiet=True), model)
    if others := _others(cells, out):  # on every host: all refuse, or none
        said = f"{out} also holds {others} runs of another sweep: results and figures leave them out"
        screen.print(Text(visible(said)), soft_wrap=True)
    meeting = None if hosts.count == 1 else Meeting(hosts, out, [out / cell.directory for cell in cells], config)
    if meeting is not None and meeting.notice:
        screen.print(meeting.notice, soft_wrap=True)
    report = SweepReport(config, cells, out, overlay, screen, show)
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
        with cell.named():
            refuse_other_settings(out / cell.directory, identity_of(cell.config, default_dtype(cell.config.dtype)))
    ours = {out / cell.directory for cell in cells}
    return sum(path.parent not in ours for path in out.glob("runs/*/*/*/samples.jsonl"))


def _decode(cells: Sequence[Cell], out: pathlib.Path, meeting: Meeting | None, report: SweepReport) -> None:
    """Every cell, or this host's share of it; then what is reported of all."""
    board, endings = report.board, Endings(report.add)
    quiet = report.config.quiet
    with Grader() as grader:
        of_weights = lambda cell: (cell.config.model, cell.config.dtype, cell.config.weights)
        begun = 0
        for (model, dtype, weights), group in itertools.groupby(cells, of_weights):
            mine = list(group)
            # One mesh for all runs of a model, chosen for the largest buffer: the weights stay where they are.
            largest = max(mine, key=lambda cell: cell.budget or cell.config.new_tokens)
            with largest.named():
                mesh = run_mesh(largest.config)
            words = mesh_text(mesh, spread_over(here(), mesh))
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
                with cell.named(), board.running(cell, report.number(begun)):
                    settled = dataclasses.replace(cell.config, out=str(directory), quiet=quiet)
                    at_hand = AtHand(loaded, problems[cell.config.task], engines)
                    above = board.table() if board.live else None
                    ending = start(settled, directory, at_hand, Display(above), grader=grader, meeting=meeting)
                    endings.add((cell, begun), ending)
                    del ending, at_hand
                    endings.settle(wait=meeting is None)
            del engines, loaded, problems  # the next model needs the memory
        endings.settle(wait=True)
    report.finish()


def _overlay(name: str, cells: Sequence[Cell]) -> Published:
    """Published values, of which at least one model here has some."""
    published = read_published(name)
    if not any(published.of(cell.model, cell.config.model) for cell in cells):
        models = ", ".join(dict.fromkeys(cell.model for cell in cells))
        panels = ", ".join(f"{panel} ({its.hf_id})" if its.hf_id else panel for panel, its in published.panels.items())
        mend = f"it has {panels}; call a model so with {{model: DIR, name: {next(iter(published.panels))}}}"
        raise UserError(f"has nothing about {models}", where=f"--overlay {name}", mend=mend)
    return published


def _check(cells: Sequence[Cell], loaded: Loaded) -> dict[str, list[Problem]]:
    """Each task's problems. Every cell: what its policy needs is there, and every prompt fits its budget."""
    problems = {
        cell.config.task: load_task(cell.config.task, loaded.tokenizer, model=loaded.name, limit=cell.config.limit)
        for cell in {cell.config.task: cell for cell in cells}.values()
    }
    for cell in cells:
        with cell.named():
            config, its = cell.config, problems[cell.config.task]
            policy, _ = config.make_policy().bind(policy_context(config, loaded))
            longest = max(len(p.prompt_ids) for p in its) + config.new_tokens
            rule = config.retention(policy, longest=longest)
            for problem in its:
                rule.check_prompt(len(problem.prompt_ids), problem.where)
    return problems
