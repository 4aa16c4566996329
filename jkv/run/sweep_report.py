"""What is told of a sweep while it runs, and written of it: a line or a board, results, tables, figures."""

import json
import pathlib
import time
from collections.abc import Sequence
from typing import Any

from rich.text import Text

from jkv.config.sweep import Cell, SweepConfig
from jkv.report.board import Board
from jkv.report.figure import draw_figure
from jkv.report.policies_figure import draw_policies
from jkv.report.published import Published
from jkv.report.results import Result, results_tables, write_results
from jkv.terminal.screen import Screen
from jkv.terminal.text import visible

DRAW_EVERY_S = 60.0  # figures take seconds to draw


class SweepReport:
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
