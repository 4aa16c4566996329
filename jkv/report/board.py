"""The live table of a sweep: a line for each task and policy, a column for each budget, filled in as runs finish."""

import contextlib
from collections.abc import Iterator, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from jkv.config.sweep import Cell
from jkv.report.results import Result
from jkv.terminal.screen import Screen
from jkv.terminal.text import visible

# Model, task, policy and budget of a cell.
_Key = tuple[str, str, str, int | None]


class Board:
    """Shows the finished, running and remaining runs of the model that is being run.

    Args:
        cells: all runs of the sweep.

    Attributes:
        live: whether stderr is a terminal that can show a live table.
    """

    def __init__(self, cells: Sequence[Cell]):
        self.cells = list(cells)
        self._values: dict[_Key, str] = {}
        self._running: _Key | None = None
        self._number = ""
        screen = Screen(stderr=True)
        self.live = screen.is_terminal and not screen.is_dumb_terminal

    @contextlib.contextmanager
    def running(self, cell: Cell, number: str) -> Iterator[None]:
        """Mark ``cell`` as running within the block. number: its place among all runs, as in '3 of 12'."""
        self._running, self._number = _key(cell), number
        yield
        self._running = None

    def done(self, cell: Cell, result: Result) -> None:
        """Fill in a finished cell: its Pass@1 in percent, or its tokens/s if nothing is graded."""
        value = result.summary["pass_at_1"]
        self._values[_key(cell)] = f"{result.summary['tps']:,.0f}/s" if value is None else f"{100 * value:.1f}"

    def describe(self, result: Result) -> str:
        """A finished run in one line of text."""
        s = result.summary
        if s["pass_at_1"] is None:
            accuracy = "not graded"
        else:
            low, high = 100 * s["pass_at_1_low"], 100 * s["pass_at_1_high"]
            accuracy = f"Pass@1 {100 * s['pass_at_1']:.1f} % [{low:.1f}, {high:.1f}]"
        return f"{accuracy}, {s['tps']:,.0f} tokens/s, {s['evictions']:,} evictions"

    def table(self) -> Table:
        """The table of the running model: Pass@1 in percent, '...' for the running cell, a dot for those to come."""
        cells = [cell for cell in self.cells if self._running is None or cell.model == self._running[0]]
        budgets = sorted({cell.budget for cell in cells if cell.budget is not None})
        tasks = list(dict.fromkeys(cell.config.task for cell in cells))
        whole = [None] if any(cell.budget is None for cell in cells) else []  # the column of the full cache
        model = visible(cells[0].model)
        table = Table(title=Text(f"{model}: Pass@1 (%), run {self._number}"), box=box.SIMPLE, title_justify="left")
        if len(tasks) > 1:
            table.add_column("task")
        table.add_column("policy")
        for budget in (*whole, *budgets):
            table.add_column("whole" if budget is None else str(budget), justify="right")
        for task in tasks:
            for label in dict.fromkeys(cell.label for cell in cells):
                there = {cell.budget for cell in cells if cell.label == label and cell.config.task == task}
                names = [visible(task), visible(label)] if len(tasks) > 1 else [visible(label)]
                row = [self._cell((cells[0].model, task, label, b)) if b in there else "" for b in (*whole, *budgets)]
                table.add_row(*map(Text, names), *row)
        return table

    def _cell(self, key: _Key) -> Text:
        if key == self._running:
            return Text("...", "bold yellow")
        return Text(self._values.get(key, "·"), "bold" if key in self._values else "dim")


def _key(cell: Cell) -> _Key:
    return (cell.model, cell.config.task, cell.label, cell.budget)
