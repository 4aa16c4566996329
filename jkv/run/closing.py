"""What is printed when a run is closed: one completion with its evicted tokens marked, and a table of the summary."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from jkv.terminal.screen import human_bytes
from jkv.terminal.text import Detokenizer, pieces, visible

# Of a longer sequence only the two ends are shown, half as many tokens each.
_SHOWN_TOKENS = 800


def thought(
    tokenizer: Detokenizer | None,
    prompt_ids: Sequence[int],
    token_ids: Sequence[int],
    kept: Sequence[int],
    *,
    title: str,
    styled: bool = True,
) -> Panel:
    """A prompt and its completion, with the tokens marked that were evicted on the way.

    Args:
        tokenizer: None for a model without one; tokens are then shown as numbers.
        prompt_ids: tokens of the prompt.
        token_ids: tokens of the completion.
        kept: positions of the tokens that were in the buffer at the end; the prompt begins at 0.
        title: of the frame.
        styled: strike evicted tokens through and colour the prompt. Without it evicted tokens stand in [- -].
    """
    ids = [*prompt_ids, *token_ids]
    kept_set = {*kept, len(ids) - 1}  # the last token is never put into the buffer, so it can't be evicted
    opening, closing = ("", "") if styled else ("[-", "-]")
    half = _SHOWN_TOKENS // 2
    ranges = [(0, len(ids))] if len(ids) <= _SHOWN_TOKENS else [(0, half), (len(ids) - half, len(ids))]
    text = Text()
    for start, end in ranges:
        if start:
            text.append(f"\n\n... {start - half:,} tokens not shown ...\n\n", "italic")
        tokens = list(zip(range(start, end), pieces(tokenizer, ids[start:end]), strict=True))
        for gone, group in itertools.groupby(tokens, lambda token: token[0] not in kept_set):
            text.append(opening if gone else "")
            for position, piece in group:
                style = "dim strike" if gone else "bold cyan" if position < len(prompt_ids) else ""
                text.append(visible(piece), style)
            text.append(closing if gone else "")
    n = len(ids) - len(kept_set)
    how = "struck through" if styled else "in [- -]"
    evicted = f"{n} of {len(ids)} tokens were evicted ({how})" if n else f"None of {len(ids)} tokens was evicted"
    caption = f"{evicted}; the first {len(prompt_ids)} are the prompt{' (cyan)' if styled else ''}."
    return Panel(
        Group(text, Text("\n" + caption, "italic")), title=Text(visible(" ".join(title.split()))), expand=False
    )


def summary_table(summary: dict[str, Any]) -> Table:
    """A run's summary (the contents of its summary.json) as a table of names and values."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _rows(summary):
        table.add_row(name, Text(visible(value)))
    return table


def _rows(s: dict[str, Any]) -> Iterable[tuple[str, str]]:
    def percent(x: float) -> str:
        """0.5 -> '50.0 %'."""
        return f"{100 * x:.1f} %"

    yield "model", f"{s['model']} on {s['device']}"
    if s["retain"] == s["budget"]:
        yield "policy", f"{s['policy']}: {s['budget']:,} slots a row, nothing is evicted"
    else:
        pinned = ", prompt pinned" if s["pin_prompt"] else ""
        per_head = ", per head" if s["granularity"] == "head" else ""
        numbers = ", ".join(f"{name} {s[name]:,}" for name in ("budget", "retain", "window", "sinks"))
        yield "policy", f"{s['policy']}: {numbers}{pinned}{per_head}"
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
