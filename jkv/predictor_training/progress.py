"""How far a stage is: a progress bar on stderr where that is a terminal, else a line every ten seconds."""

import time

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jkv.terminal.screen import Screen

SECONDS_A_LINE = 10


class StageProgress:
    """A context manager that shows how far a stage is.

    Args:
        screen: where to.
        stage: what the stage is called.
        total: how many things it does.
        done: how many are done already.
    """

    def __init__(self, screen: Screen, stage: str, total: int, done: int) -> None:
        self.screen, self.stage, self.total, self.done = screen, stage, total, done
        self.printed = time.perf_counter()
        self.live = screen.is_terminal and not screen.is_dumb_terminal and not screen.quiet
        self.bar = Progress(
            TextColumn(stage), BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(), console=screen, transient=True, disable=not self.live,
        )  # fmt: skip
        self.task = self.bar.add_task("", total=total, completed=done, note="")

    def __enter__(self) -> "StageProgress":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def update(self, done: int, note: str) -> None:
        """Show that ``done`` of all things are done, with a note beside it."""
        self.done = done
        self.bar.update(self.task, completed=done, note=note)
        now = time.perf_counter()
        if not self.live and now - self.printed > SECONDS_A_LINE:
            self.printed = now
            self.screen.print(f"{self.stage}: {done} of {self.total}, {note}", soft_wrap=True)
