"""What a person sees of a run: live lines while it decodes, one thought with what was evicted, the closing table."""

import contextlib
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any, cast

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from jkv import engine
from jkv.api.line import LINE
from jkv.text import pieces
from jkv.text import short as short
from jkv.text import visible as visible

_LOG_EVERY_S = 10.0
# A thought longer than this is shown without its middle.
_SHOWN_TOKENS = 800


class Screen(Console):
    """A console that leaves a closed pipe to the command, which ends quietly (rich would exit with code 1).

    In a notebook, what goes to stderr is one line that is written over.
    """

    def __init__(self, **settings: Any):
        if settings.get("stderr") and Console().is_jupyter:
            settings |= {"file": cast(IO[str], LINE), "force_jupyter": False, "force_terminal": False}
        super().__init__(**settings)

    def on_broken_pipe(self) -> None:
        """Called by rich while it handles the BrokenPipeError."""
        raise


def human_bytes(n: int | float) -> str:
    """1536 -> '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024 or unit == "GiB":
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:,.1f} {unit}"
        n /= 1024
    raise AssertionError


@contextlib.contextmanager
def busy(what: str, *, quiet: bool) -> Iterator[None]:
    """While the block runs, a terminal shows ``what``: reading a large model takes minutes."""
    screen = Screen(stderr=True, quiet=quiet)
    with contextlib.ExitStack() as stack:
        if screen.is_terminal and not screen.is_dumb_terminal and not quiet:
            stack.enter_context(screen.status(Text(visible(what)), spinner="line"))
        yield


class LiveProgress:
    """Samples done, rows at work, tokens a second, slots in use, KV memory beside the full cache's. On stderr; where
    that is no terminal, a plain line at the start and then every ten seconds."""

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

    def __exit__(self, *_) -> None:
        self.bar.stop()

    def compiling(self) -> None:
        """Say so where there is no live line: of a large model it takes minutes."""
        self._log(f"compiling, {self.memory}")

    def start_clock(self) -> None:
        """Compilation is over: tokens a second count from here."""
        self.started = time.perf_counter()

    def sample_done(self, count: int = 1) -> None:
        """More samples are finished."""
        self.done += count
        self.bar.update(self.task, completed=self.done)

    def tick(self, progress: engine.Progress) -> None:
        """After a call of the device."""
        rate = progress.tokens / max(time.perf_counter() - self.started, 1e-9)
        rows = f"{progress.active_rows} row{'' if progress.active_rows == 1 else 's'}"
        self.bar.below = (
            f"{rows}, {rate:,.0f} tokens/s, {progress.occupied_slots:,} of {self.slots:,} slots, {self.memory}"
        )
        self._log(self.bar.below)

    def _log(self, what: str) -> None:
        now = time.perf_counter()
        if not self.live and now - self.last_log > _LOG_EVERY_S:
            self.last_log = now
            self.console.print(f"{self.done} of {self.total} samples, {what}", soft_wrap=True)


class _Bar(Progress):
    """A progress bar with a text below it, which wraps on a narrow terminal, and whatever is to stand above."""

    above: RenderableType | None = None
    below = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        if self.above is not None:
            yield self.above
        yield from super().get_renderables()
        yield Text(self.below)


def thought(
    tokenizer: Any,
    prompt_ids: Sequence[int],
    token_ids: Sequence[int],
    kept: Sequence[int],
    *,
    title: str,
    styled: bool = True,
) -> Panel:
    """A completion token by token: what was still in the buffer at its end, and what was evicted on the way.

    kept: positions in the buffer at the end.  styled: strike evicted tokens through; else they stand in [- -].
    """
    ids = [*prompt_ids, *token_ids]
    kept_set = {*kept, len(ids) - 1}  # the last token is never inserted, so never evicted
    opening, closing = ("", "") if styled else ("[-", "-]")
    half = _SHOWN_TOKENS // 2
    ranges = [(0, len(ids))] if len(ids) <= _SHOWN_TOKENS else [(0, half), (len(ids) - half, len(ids))]
    text = Text()
    for start, end in ranges:
        if start:
            text.append(f"\n\n... {start - half:,} tokens not shown ...\n\n", "italic")
        words = list(zip(range(start, end), pieces(tokenizer, ids[start:end]), strict=True))
        for gone, run in itertools.groupby(words, lambda word: word[0] not in kept_set):
            text.append(opening if gone else "")
            for position, word in run:
                text.append(visible(word), "dim strike" if gone else "bold cyan" if position < len(prompt_ids) else "")
            text.append(closing if gone else "")
    n = len(ids) - len(kept_set)
    how = "struck through" if styled else "in [- -]"
    evicted = f"{n} of {len(ids)} tokens were evicted ({how})" if n else f"None of {len(ids)} tokens was evicted"
    caption = f"{evicted}; the first {len(prompt_ids)} are the prompt{' (cyan)' if styled else ''}."
    return Panel(
        Group(text, Text("\n" + caption, "italic")), title=Text(visible(" ".join(title.split()))), expand=False
    )


def summary_table(summary: dict[str, Any]) -> Table:
    """The closing table."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _rows(summary):
        table.add_row(name, Text(visible(value)))
    return table


def _rows(s: dict[str, Any]) -> Iterable[tuple[str, str]]:
    def percent(x: float) -> str:
        return f"{100 * x:.1f} %"

    yield "model", f"{s['model']} on {s['device']}"
    if s["retain"] == s["budget"]:
        yield "policy", f"{s['policy']}: {s['budget']:,} slots a row, nothing is evicted"
    else:
        pinned = ", prompt pinned" if s["pin_prompt"] else ""
        per_head = ", per head" if s["granularity"] == "head" else ""
        words = ", ".join(f"{word} {s[word]:,}" for word in ("budget", "retain", "window", "sinks"))
        yield "policy", f"{s['policy']}: {words}{pinned}{per_head}"
    if s["pass_at_1"] is None:
        yield "Pass@1", "not graded" + ("" if s.get("ungraded") else ": the task has no answers")
    else:
        yield (
            "Pass@1",
            f"{percent(s['pass_at_1'])} (95 %: {percent(s['pass_at_1_low'])} to {percent(s['pass_at_1_high'])})",
        )
        yield "majority", percent(s["maj_at_k"])
    if s.get("ungraded"):
        yield "ungraded", f"{s['ungraded']:,} samples, not counted in Pass@1: see ungraded in samples.jsonl"
    yield (
        "samples",
        f"{s['samples']:,}, {s['mean_tokens']:,.0f} tokens each on average, {percent(s['truncation_rate'])} cut off",
    )
    yield (
        "evictions",
        f"{s['evictions']:,}; slots of a row: {s['mean_slots']:,.0f} on average, {s['peak_slots']:,} at most",
    )
    full, kv = human_bytes(s["kv_bytes_full"]), human_bytes(s["kv_bytes"])
    yield "KV memory", f"{kv} for {s['batch_size']} rows; the full cache would take {full}"
    yield (
        "throughput",
        f"{s['tps']:,.0f} tokens/s ({s['tokens']:,} in {s['wall_s']:,.1f} s, after {s['compile_s']:,.1f} s compiling)",
    )
    if s["tps_paper"] is not None:
        yield "tps_paper", f"{s['tps_paper']:,.0f} tokens/s (rows x steps / decode time, unused rows included)"
    if s["recompiles"]:
        yield "recompiles", f"{s['recompiles']}: the throughput can't be trusted"
