"""The live table of a sweep: a line a model, task and policy, a column a budget, filled as runs finish."""

import contextlib
from collections.abc import Iterator, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from jkv.config.sweep import Cell
from jkv.report.results import Result
from jkv.terminal.screen import Screen
from jkv.terminal.text import visible


class Board:
    """What has run, what runs and what is to come, of the model at work. live: whether there is a terminal for it."""

    def __init__(self, cells: Sequence[Cell]):
        self.cells = list(cells)
        self.shown: dict[tuple, str] = {}
        self.now: tuple | None = None
        self.number = ""
        screen = Screen(stderr=True)
        self.live = screen.is_terminal and not screen.is_dumb_terminal

    @contextlib.contextmanager
    def running(self, cell: Cell, number: str) -> Iterator[None]:
        """While the cell runs."""
        self.now, self.number = _key(cell), number
        yield
        self.now = None

    def done(self, cell: Cell, result: Result) -> None:
        """The cell's Pass@1, or its tokens/s where nothing is graded."""
        value = result.summary["pass_at_1"]
        self.shown[_key(cell)] = f"{result.summary['tps']:,.0f}/s" if value is None else f"{100 * value:.1f}"

    def said(self, result: Result) -> str:
        """A finished run in a line."""
        s = result.summary
        if s["pass_at_1"] is None:
            accuracy = "not graded"
        else:
            low, high = 100 * s["pass_at_1_low"], 100 * s["pass_at_1_high"]
            accuracy = f"Pass@1 {100 * s['pass_at_1']:.1f} % [{low:.1f}, {high:.1f}]"
        return f"{accuracy}, {s['tps']:,.0f} tokens/s, {s['evictions']:,} evictions"

    def table(self) -> Table:
        """The cells of the model at work. Pass@1 in percent; a dot is to come."""
        mine = [cell for cell in self.cells if self.now is None or cell.model == self.now[0]]
        budgets = sorted({cell.budget for cell in mine if cell.budget is not None})
        tasks = list(dict.fromkeys(cell.config.task for cell in mine))
        model = visible(mine[0].model)
        table = Table(title=Text(f"{model}: Pass@1 (%), run {self.number}"), box=box.SIMPLE, title_justify="left")
        if len(tasks) > 1:
            table.add_column("task")
        table.add_column("policy")
        for heading in ("whole", *map(str, budgets)) if any(c.budget is None for c in mine) else map(str, budgets):
            table.add_column(heading, justify="right")
        for task in tasks:
            for label in dict.fromkeys(cell.label for cell in mine):
                whole = [None] if any(c.budget is None for c in mine) else []
                there = {c.budget for c in mine if c.label == label and c.config.task == task}
                words = [self._cell(mine[0].model, task, label, b) if b in there else "" for b in (*whole, *budgets)]
                names = [visible(task), visible(label)] if len(tasks) > 1 else [visible(label)]
                table.add_row(*map(Text, names), *words)
        return table

    def _cell(self, model: str, task: str, label: str, budget: int | None) -> Text:
        key = (model, task, label, budget)
        if key == self.now:
            return Text("...", "bold yellow")
        return Text(self.shown.get(key, "·"), "bold" if key in self.shown else "dim")


def _key(cell: Cell) -> tuple:
    return (cell.model, cell.config.task, cell.label, cell.budget)
