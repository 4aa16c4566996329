"""What a sweep shows while it runs, and what it writes: a line a run or a live table, results, figures."""

import pathlib
import time
from collections.abc import Sequence

from rich.text import Text

from jkv.config.sweep import Cell, SweepConfig
from jkv.report.board import Board
from jkv.report.figure import draw_figure
from jkv.report.policies_figure import draw_policies
from jkv.report.published import Published
from jkv.report.results import Result, results_tables, write_results
from jkv.run.directory import read_samples
from jkv.run.summary import Summary
from jkv.terminal.screen import Screen
from jkv.terminal.text import visible

# Seconds between two drawings of the figures while a sweep runs: one takes seconds.
DRAW_EVERY_S = 60.0


class SweepReport:
    """Shows and writes a sweep's results, on the first host.

    Attributes:
        board: the live table.
        results: of the runs that are closed, in their order.
    """

    def __init__(
        self, config: SweepConfig, cells: Sequence[Cell], out: pathlib.Path, overlay: Published | None, screen: Screen,
        show: bool,
    ):  # fmt: skip
        """
        Args:
            config: the sweep.
            cells: all its runs.
            out: its directory.
            overlay: published values to draw beside the results.
            screen: for lines on stderr.
            show: print the tables on stdout at the end.
        """
        self.config, self.cells, self.out, self.overlay = config, cells, out, overlay
        self.screen, self.show = screen, show
        self.board = Board(cells)
        self.results: list[Result] = []
        self.drawn = time.monotonic()

    def number(self, count: int) -> str:
        """3 -> '3 of 12'."""
        return f"{count} of {len(self.cells)}"

    def begins(self, cell: Cell, count: int) -> None:
        """Print the name of a cell that is about to be decoded, unless there is a live table.

        Args:
            cell: the run.
            count: its number, from 1.
        """
        if not self.board.live:
            self.screen.print(Text(visible(f"{self.number(count)}: {cell.name}")), soft_wrap=True)

    def add(self, label: tuple[Cell, int], summary: Summary) -> None:
        """Show the result of a closed run, and write all results so far.

        Args:
            label: the run and its number, from 1.
            summary: of the run.
        """
        cell, count = label
        result = Result(
            cell.model, cell.label, cell.budget, cell.config.task, summary, _correct(self.out / cell.directory)
        )
        self.results.append(result)
        self.board.done(cell, result)
        if not self.board.live:
            self.screen.print(Text(visible(f"{self.number(count)}: {self.board.describe(result)}")), soft_wrap=True)
        write_results(self.out, self.results)
        if time.monotonic() - self.drawn > DRAW_EVERY_S and len(self.results) < len(self.cells):
            self._draw()
            self.drawn = time.monotonic()

    def finish(self) -> None:
        """Draw the figures and print the tables, when all runs are closed. Nothing on hosts without results."""
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


def _correct(directory: pathlib.Path) -> dict[str, list[float]]:
    """The samples of a finished run, by problem: 1 right, 0 wrong; ungraded ones are left out.

    Sorted by id and sample, not in the order of finishing: a bootstrap then draws the same for a run that was stopped
    and continued.
    """
    correct: dict[str, list[float]] = {}
    for row in sorted(read_samples(directory), key=lambda row: (row["id"], row["sample"])):
        if row["correct"] is not None:
            correct.setdefault(row["id"], []).append(float(row["correct"]))
    return correct
