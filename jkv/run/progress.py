"""The progress of a run on stderr."""

import time
from collections.abc import Iterable

from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from jkv.engine import events
from jkv.terminal.screen import Screen, human_bytes

_LOG_EVERY_S = 10.0


class LiveProgress:
    """Shows samples done, active rows, tokens/s, occupied slots, and KV memory compared with the full cache's.

    A context manager. On a terminal it is a bar with a line below it; elsewhere a plain line at the start and then at
    most one every ten seconds.
    """

    def __init__(
        self,
        *,
        total: int,
        slots: int,
        kv_bytes: int,
        kv_bytes_full: int,
        quiet: bool,
        above: RenderableType | None = None,
    ):
        """
        Args:
            total: samples to finish.
            slots: KV slots of all rows.
            kv_bytes: bytes of the KV buffer.
            kv_bytes_full: bytes that it would take if nothing were evicted.
            quiet: show nothing.
            above: stands over the bar on a terminal.
        """
        self.console = Screen(stderr=True, quiet=quiet, highlight=False, markup=False)
        self.memory = f"KV {human_bytes(kv_bytes)} (full cache {human_bytes(kv_bytes_full)})"
        self.total, self.slots, self.done = total, slots, 0
        self.live = self.console.is_terminal and not self.console.is_dumb_terminal and not quiet
        self.bar = _Bar(
            TextColumn("decoding"), BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("samples"),
            TimeElapsedColumn(), console=self.console, transient=True, disable=not self.live,
        )  # fmt: skip
        self.task = self.bar.add_task("", total=total)
        self.bar.above = above
        self.bar.below = f"compiling, {self.memory}"
        self.started = time.perf_counter()
        self.last_log = -_LOG_EVERY_S

    def __enter__(self) -> "LiveProgress":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def compiling(self) -> None:
        """Print, where there is no bar, that the programs are being compiled, which takes minutes for a large model."""
        self._log(f"compiling, {self.memory}")

    def start_clock(self) -> None:
        """Count tokens/s from now on, when compilation is over."""
        self.started = time.perf_counter()

    def sample_done(self, count: int = 1) -> None:
        """Count ``count`` more finished samples."""
        self.done += count
        self.bar.update(self.task, completed=self.done)

    def tick(self, progress: events.Progress) -> None:
        """Show where the run stands after a call of the decode program."""
        rate = progress.tokens / max(time.perf_counter() - self.started, 1e-9)
        rows = f"{progress.active_rows} row{'' if progress.active_rows == 1 else 's'}"
        self.bar.below = (
            f"{rows}, {rate:,.0f} tokens/s, {progress.occupied_slots:,} of {self.slots:,} slots, {self.memory}"
        )
        self._log(self.bar.below)

    def _log(self, what: str) -> None:
        """Print a plain line, unless there is a bar or the last line is too recent."""
        now = time.perf_counter()
        if not self.live and now - self.last_log > _LOG_EVERY_S:
            self.last_log = now
            self.console.print(f"{self.done} of {self.total} samples, {what}", soft_wrap=True)


class _Bar(Progress):
    """A progress bar with a line of text below it, which wraps on a narrow terminal, and something above it."""

    above: RenderableType | None = None
    below = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """What rich draws, from top to bottom."""
        if self.above is not None:
            yield self.above
        yield from super().get_renderables()
        yield Text(self.below)
