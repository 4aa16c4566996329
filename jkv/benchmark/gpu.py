"""``python -m jkv.benchmark.gpu --out FILE.json``: everything there is to measure on one GPU, in one call.

Each op against its reference, the bandwidth of a copy, decode attention alone, tokens/s of the decode program with
random weights at full R1 shapes beside the full cache at its own largest batch, and transformers on the same GPU. The
most important cells come first and each is written when it is done; the same command with the same FILE measures what
is missing. ``--smoke`` runs all of it at tiny sizes, on any machine.
"""

import dataclasses
import datetime
import gc
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from jkv import flags
from jkv.benchmark.r1 import R1, TINY
from jkv.benchmark.record import Record
from jkv.cli import run as run_command
from jkv.config import ModelConfig
from jkv.errors import UserError


@dataclasses.dataclass(frozen=True)
class GpuConfig:
    """Flags of the command."""

    out: str = "gpu.json"
    seconds: int = 520
    smoke: bool = False


HELP = {
    "out": "the JSON file; continued if it is there",
    "seconds": "no cell is begun that would not end within this time; the rest is left to another call",
    "smoke": "tiny sizes, on any machine: shows that it runs, measures nothing",
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """Sizes. thought: tokens of a completion, which a full cache must hold.  steps, calls: of a decode cell.
    attention: batch and slots of decode attention alone.  margin: seconds that a decode cell is given."""

    models: dict[str, ModelConfig]
    budgets: tuple[int, ...]
    batches: tuple[int, ...]
    thought: int
    steps: int
    calls: int
    copy_bytes: int
    check_slots: tuple[int, ...]
    attention: tuple[tuple[int, int], ...]
    rival_batch: int
    rival_tokens: int
    margin: float


FULL = Plan(
    R1, (2500, 5000, 3000, 3500, 4000, 4500), (64, 128, 20), 16384, 64, 3, 1 << 30, (2500, 5000),
    ((64, 2500), (20, 5000)), 20, 64, 75.0,
)  # fmt: skip
SMOKE = Plan(TINY, (32,), (3,), 64, 8, 1, 1 << 20, (40,), ((2, 40),), 2, 4, 1.0)


def main(argv: list[str] | None = None) -> None:
    """Measure what the record lacks, then print its table."""
    config = flags.parse(GpuConfig, argv, prog="python -m jkv.benchmark.gpu", description=__doc__, help=HELP)
    # Before JAX looks for devices: its memory is taken as it is needed (PyTorch has its turn first), nearly all of it.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.94")
    import jax

    if jax.default_backend() != "gpu" and not config.smoke:
        mend = "run it on one, with pip install -e '.[cuda]'; or give --smoke"
        raise UserError(f"no GPU: JAX runs on {jax.default_backend()} here", mend=mend)
    device = jax.local_devices()[0]
    head = {
        "device": device.device_kind, "jax": jax.__version__, "commit": _commit(), "smoke": config.smoke,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }  # fmt: skip
    record = Record(Path(config.out), head, float(config.seconds))
    limit = (device.memory_stats() or {}).get("bytes_limit")
    console = Console(stderr=True)
    for step in _steps(SMOKE if config.smoke else FULL, record, limit):
        console.print(step, highlight=False, soft_wrap=True)
    Console(width=120).print(table(record))
    Console().print(notes(record), highlight=False, soft_wrap=True)


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _steps(plan: Plan, record: Record, limit: int | None) -> Iterator[str]:
    """Measures cell after cell, most important first; yields a line for each."""
    from jkv.benchmark import gpu_decode, gpu_ops, gpu_rival

    name, config = next(iter(plan.models.items()))
    if (cell := f"transformers {name}") not in record.cells:
        found = gpu_rival.ask(
            config, batch=plan.rival_batch, prompt=plan.budgets[0], new_tokens=plan.rival_tokens,
            seconds=max(30.0, record.left / 4),
        )  # fmt: skip
        record.put(cell, found)
        yield _line(cell, found)
    if "copy" not in record.cells:
        record.put("copy", gpu_ops.copy_bandwidth(plan.copy_bytes))
        yield _line("copy", record.cells["copy"])
    yield from _ops(plan, record)
    gb_s = record.cells["copy"]["gb_s"]
    model, held = None, None
    for load in _loads(plan, limit):
        if load.name in record.cells:
            continue
        shape = plan.models[load.model]
        need = gpu_decode.predicted_bytes(shape, load.batch, load.budget) + gpu_decode.SLACK
        kernel = record.cells[f"attention pallas, {load.model} S{plan.attention[0][1]} B{plan.attention[0][0]}"]
        if load.kernels and "skipped" in kernel:
            record.skip(load.name, kernel["skipped"])
        elif load.batch < 1 or (limit is not None and need > limit):
            record.skip(load.name, f"needs {need / 1e9:.0f} GB" + (f" of {limit / 1e9:.0f}" if limit else ""))
        elif record.left < _needed(record, plan):
            record.skip(load.name, "no time left", again=True)
        else:
            if held != load.model:
                model = None  # the other model's weights go first
                gc.collect()
                model, held = gpu_decode.random_model(shape), load.model
            record.put(load.name, _measured(load, model, plan, gb_s))
            gc.collect()
        yield _line(load.name, record.cells[load.name])


def _needed(record: Record, plan: Plan) -> float:
    """Seconds that a decode cell may take: compiling is nearly all of it, and the cells before tell how long it is."""
    return max(plan.margin, 1.5 * max((cell.get("compile_s", 0.0) for cell in record.cells.values()), default=0.0))


def _measured(load: Any, model: Any, plan: Plan, gb_s: float) -> dict[str, Any]:
    import jax

    from jkv.benchmark import gpu_decode

    try:
        return gpu_decode.measure(load, model, steps=plan.steps, calls=plan.calls, gb_s=gb_s)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {"skipped": "out of memory"}


def _ops(plan: Plan, record: Record) -> Iterator[str]:
    from jkv.benchmark import gpu_ops

    groups = {name: (c.n_kv_heads, c.n_heads // c.n_kv_heads, c.head_dim) for name, c in plan.models.items()}
    for slots in plan.check_slots:
        for kv_heads, group, dim in groups.values():
            if f"compact pallas, B2 K{kv_heads} G{group} S{slots} H{dim}" in record.cells:
                continue
            for name, cell in gpu_ops.check_ops([(2, kv_heads, group, slots, dim)]):
                record.put(name, cell)
                yield _line(name, cell)
    for name, (kv_heads, group, dim) in groups.items():
        for batch, slots in plan.attention:
            for implementation in gpu_ops.ATTENTION_ALONE:
                cell = f"attention {implementation}, {name} S{slots} B{batch}"
                if cell not in record.cells:
                    record.put(cell, gpu_ops.attention_time(implementation, (batch, kv_heads, group, slots, dim)))
                    yield _line(cell, record.cells[cell])


def _loads(plan: Plan, limit: int | None) -> list[Any]:
    """All cells, most important first: per model one budget and batch and the full cache, each with XLA's attention and
    with the kernel; then the other budgets and batches with what 'auto' chooses."""
    from jkv.benchmark.gpu_decode import Load, largest_batch

    first, rest = [], []
    for name, config in plan.models.items():
        full = Load(name, "full", plan.thought, largest_batch(config, plan.thought, limit))
        grid = [
            Load(name, policy, budget, batch)
            for batch in plan.batches
            for budget in plan.budgets
            for policy in ("window", "dynts")
        ]
        with_kernels = [dataclasses.replace(load, kernels=True) for load in (grid[0], full, grid[1])]
        first += [grid[0], full, with_kernels[0], grid[1], *with_kernels[1:]]
        rest += grid[2:]
    return first + rest


def _line(name: str, cell: dict[str, Any]) -> str:
    if "skipped" in cell:
        return f"{name}: skipped, {cell['skipped']}"
    units = {"tokens_s": "tokens/s", "gb_s": "GB/s", "ms": "ms", "error": "off", "compile_s": "s to compile"}
    return f"{name}: " + ", ".join(f"{cell[key]:.4g} {unit}" for key, unit in units.items() if key in cell)


def table(record: Record) -> Table:
    """Decode cells that were measured, and what they are compared with."""
    head, cells = record.head, record.cells
    title = f"Decode on {head['device']}, bfloat16, JAX {head['jax']}, {head['date']}, {head['commit']}"
    made = Table(title=title, box=box.MARKDOWN)
    for heading in ("model", "policy", "budget", "batch", "kernel", "tokens/s", "ms a step", "of the roofline"):
        made.add_column(heading, justify="left" if heading in ("model", "policy", "kernel") else "right")
    for name, cell in cells.items():
        if "tokens_s" not in cell:
            continue
        made.add_row(
            cell.get("model", name.split()[-1]), cell.get("policy", "transformers, full"),
            str(cell.get("budget", round(cell["mean_slots"]))), str(cell["batch"]), cell.get("kernel", ""),
            f"{cell['tokens_s']:,.0f}", f"{cell['ms_per_step']:.1f}",
            f"{100 * cell['share_of_roofline']:.0f} %" if "share_of_roofline" in cell else "",
        )  # fmt: skip
    return made


def notes(record: Record) -> str:
    """What to read the table with."""
    cells = record.cells
    wrong = ", ".join(name for name, cell in cells.items() if cell.get("right") is False) or "none"
    right = sum(cell.get("right") is True for cell in cells.values())
    return (
        f"Roofline: bytes a step reads at {cells['copy']['gb_s']:,.0f} GB/s, the bandwidth of a copy. "
        f"Ops right: {right}; wrong: {wrong}. Cells without figures: {sum('skipped' in c for c in cells.values())}."
    )


if __name__ == "__main__":
    run_command(main)
