"""What a person sees of a run: the live line while it decodes, one thought with what was evicted, the closing table."""

import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from jkv import engine

_LOG_EVERY_S = 10.0


def human_bytes(n: float) -> str:
    """1536 -> '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024 or unit == "GiB":
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    raise AssertionError


class LiveProgress:
    """Samples done, tokens a second, slots in use, KV memory beside the full cache's. On stderr; where that is no
    terminal, a plain line every ten seconds."""

    def __init__(self, *, total: int, slots: int, kv_bytes: int, kv_bytes_full: int, quiet: bool):
        self.console = Console(stderr=True, quiet=quiet)
        self.memory = f"KV {human_bytes(kv_bytes)} (full cache {human_bytes(kv_bytes_full)})"
        self.total, self.slots, self.done = total, slots, 0
        self.bar = Progress(
            TextColumn("decoding"), BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("{task.fields[what]}"),
            TimeElapsedColumn(), console=self.console, transient=True, disable=quiet or not self.console.is_terminal,
        )  # fmt: skip
        self.task = self.bar.add_task("", total=total, what="compiling")
        self.started = self.last_log = time.perf_counter()

    def __enter__(self) -> "LiveProgress":
        self.bar.start()
        return self

    def __exit__(self, *_) -> None:
        self.bar.stop()

    def start_clock(self) -> None:
        """Compilation is over: tokens a second count from here."""
        self.started = time.perf_counter()

    def sample_done(self) -> None:
        """One more sample is finished."""
        self.done += 1
        self.bar.update(self.task, completed=self.done)

    def tick(self, progress: engine.Progress) -> None:
        """After a call of the device."""
        now = time.perf_counter()
        rate = progress.tokens / max(now - self.started, 1e-9)
        what = f"{rate:,.0f} tok/s · slots {progress.occupied_slots:,}/{self.slots:,} · {self.memory}"
        self.bar.update(self.task, what=what)
        if not self.console.is_terminal and now - self.last_log > _LOG_EVERY_S:
            self.last_log = now
            self.console.print(f"{self.done}/{self.total} samples · {what}", highlight=False)


def thought(
    tokenizer: Any, prompt_ids: Sequence[int], token_ids: Sequence[int], kept: Sequence[int], title: str
) -> Panel:
    """A completion token by token: what was still in the buffer at its end, and what was evicted on the way."""
    kept_set = set(kept)
    text = Text()
    ids = [*prompt_ids, *token_ids]
    words = [tokenizer.decode([i]) for i in ids] if tokenizer is not None else [f"{i} " for i in ids]
    spaced = tokenizer is not None and tokenizer.decode(ids[:2]) != "".join(words[:2])  # a word-level vocabulary
    last = len(ids) - 1  # never inserted, so never evicted
    for position, word in enumerate(words):
        style = "bold cyan" if position < len(prompt_ids) else ""
        if position not in kept_set and position != last:
            style = "dim strike"
        text.append(word, style)
        text.append(" " if spaced else "")
    gone = len(ids) - len(kept_set) - 1
    caption = Text(f"\n{gone} of {len(ids)} tokens were evicted (struck through); the prompt is cyan.", "italic")
    return Panel(Group(text, caption), title=Text(title), expand=False)


def summary_table(summary: dict[str, Any]) -> Table:
    """The closing table."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column()

    def percent(x: float | None) -> str:
        return "-" if x is None else f"{100 * x:.1f} %"

    s = summary
    full, kv = human_bytes(s["kv_bytes_full"]), human_bytes(s["kv_bytes"])
    interval = "" if s["pass_at_1"] is None else f"  (95 %: {percent(s['pass_at_1_low'])} to {percent(s['pass_at_1_high'])})"
    pinned = ", prompt pinned" if s["pin_prompt"] else ""
    rows = {
        "model": f"{s['model']} on {s['device']}",
        "policy": f"{s['policy']}: budget {s['budget']}, retain {s['retain']}, window {s['window']}, "
        f"sinks {s['sinks']}{pinned}",
        "Pass@1": percent(s["pass_at_1"]) + interval,
        "samples": f"{s['samples']}, {s['mean_tokens']:.0f} tokens each on average, {percent(s['truncation_rate'])} cut off",
        "evictions": f"{s['evictions']:,}; slots in use: {s['mean_slots']:.0f} on average, {s['peak_slots']} at most",
        "KV memory": f"{kv}, the full cache would take {full}",
        "throughput": f"{s['tps']:,.0f} tokens/s ({s['tokens']:,} in {s['wall_s']:.1f} s; compiling took {s['compile_s']:.1f} s)",
    }
    for name, value in rows.items():
        table.add_row(name, Text(value))
    return table
