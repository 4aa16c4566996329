"""``python -m jkv.benchmark.gpu --out FILE.json``: everything there is to measure on one GPU, in one call.

It compares each op with its reference, and measures the bandwidth of a copy, decode attention alone, tokens/s of the
decode program with random weights of R1-Distill's sizes (as users get it, and with XLA's ops only), tokens/s with the
full cache at the largest batch that fits, and transformers on the same GPU. The most important measurements come first.
Each is written when it is done, and the same command with the same FILE measures what is missing. ``--smoke`` runs all
of it at tiny sizes, on any machine.
"""

import dataclasses
import datetime
import functools
import gc
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from jkv.benchmark.r1 import R1, TINY
from jkv.benchmark.record import Record
from jkv.errors import UserError
from jkv.models.config import ModelConfig
from jkv.terminal import flags
from jkv.terminal.command import run as run_command

if TYPE_CHECKING:
    from jkv.benchmark.gpu_decode import Load
    from jkv.models import Decoder


@dataclasses.dataclass(frozen=True)
class GpuConfig:
    """The flags of the command; the docstrings under its fields are their help."""

    out: str = "gpu.json"
    """the JSON file; continued if it is there"""
    seconds: int = 520
    """no measurement is begun that would not end within this time; the rest is left to another call"""
    smoke: bool = False
    """tiny sizes, on any machine: shows that it runs, measures nothing"""


# Measurements by name. Each returns its cell of the record: figures, or {"skipped": why}.
Cells = dict[str, Callable[[], dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Plan:
    """The sizes to measure at.

    Attributes:
        models: configs by name, the most important first.
        budgets: slots a row, the most important first.
        batches: rows, the most important first.
        thought: tokens of a completion, all of which a full cache has to hold.
        steps: decode steps a device call.
        calls: timed device calls of a decode measurement.
        copy_bytes: size of the copy that gives the bandwidth.
        check_slots: slots a row of the checks against references.
        attention: (rows, slots a row) of decode attention alone.
        rival_batch: rows of transformers.
        rival_tokens: new tokens of transformers.
        margin: seconds that have to be left for a decode measurement to begin.
    """

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
    ((64, 2500), (20, 5000)), 20, 64, 20.0,
)  # fmt: skip
SMOKE = Plan(TINY, (32,), (3,), 64, 8, 1, 1 << 20, (40,), ((2, 40),), 2, 4, 1.0)


def main(argv: list[str] | None = None) -> None:
    """Measure what the record lacks, then print its table.

    Raises:
        UserError: there is no GPU, the file belongs to another run, or a measurement failed.
    """
    config = flags.parse(GpuConfig, argv, prog="python -m jkv.benchmark.gpu", description=__doc__)
    # Set before JAX looks for devices. It takes memory as it needs it, since PyTorch is measured first, and may take
    # nearly all there is.
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
    if failed := [name for name, cell in record.cells.items() if "failed" in cell]:
        raise UserError(f"failed: {'; '.join(failed)}", where=config.out)


def _commit() -> str | None:
    """The commit of the git repository that this file is in, if it is in one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _steps(plan: Plan, record: Record, limit: int | None) -> Iterator[str]:
    """Measure what the record lacks, the most important first, and yield a line for the user after each.

    limit: bytes of device memory, None where JAX doesn't know.
    """
    decode = _DecodeCells(plan, record, limit)
    groups = [
        _before_jax(plan, record),
        _ops(plan, "xla"),
        _ops(plan, "pallas"),
        *(decode.cells(loads) for loads in _loads(plan, limit)),
    ]
    for cells in groups:
        for name, measure in cells.items():
            if name not in record.cells:
                record.put(name, _attempt(measure))
                yield _line(name, record.cells[name])


def _before_jax(plan: Plan, record: Record) -> Cells:
    """What is measured before JAX holds device memory: transformers, which needs it, then a copy."""
    from jkv.benchmark import gpu_ops, gpu_rival

    name, config = next(iter(plan.models.items()))
    sizes = {"batch": plan.rival_batch, "prompt": plan.budgets[0], "new_tokens": plan.rival_tokens}
    return {
        f"transformers {name}": lambda: gpu_rival.ask(config, **sizes, seconds=max(30.0, record.left / 4)),
        "copy": lambda: gpu_ops.copy_bandwidth(plan.copy_bytes),
    }


def _ops(plan: Plan, implementation: str) -> Cells:
    """Each op against its reference, and decode attention alone, by one implementation (xla or pallas)."""
    from jkv.benchmark import gpu_ops

    cells: Cells = {}
    for name, c in plan.models.items():
        heads = (c.n_kv_heads, c.n_heads // c.n_kv_heads)
        for slots in plan.check_slots:
            cells |= gpu_ops.checks(implementation, (2, *heads, slots, c.head_dim))
        for batch, slots in plan.attention:
            shape = (batch, *heads, slots, c.head_dim)
            cells[f"attention {implementation}, {name} S{slots} B{batch}"] = functools.partial(
                gpu_ops.attention_time, implementation, shape
            )
    return cells


def _loads(plan: Plan, limit: int | None) -> Iterator[list["Load"]]:
    """What the decode program is measured with, in groups of one model each: only one model's weights fit at a time.

    First, for every model, the first batch and budget: as users get it, with XLA's ops only, with policy dynts, at a
    second budget, and with the full cache. Then the first batch at the other budgets and the other batches at two; then
    what is left, and dynts at all of them.
    """
    from jkv.benchmark.gpu_decode import Load, largest_batch

    (batch, *batches), (budget, *budgets) = plan.batches, plan.budgets
    for name, config in plan.models.items():
        window = Load(name, "window", budget, batch)
        full = Load(name, "full", plan.thought, largest_batch(config, plan.thought, limit))
        yield [window, dataclasses.replace(window, kernels=False), dataclasses.replace(window, policy="dynts")]
        yield [*(Load(name, "window", b, batch) for b in budgets[:1]), full]
    for name in plan.models:
        yield [Load(name, "window", b, batch) for b in budgets[1:]]
        yield [Load(name, "window", b, n) for n in batches for b in plan.budgets[:2]]
    for name in plan.models:
        yield [Load(name, "window", b, n) for n in batches for b in plan.budgets[2:]]
        yield [Load(name, "dynts", b, n) for n in plan.batches for b in plan.budgets]


class _DecodeCells:
    """Measurements of the decode program. One model's weights are in memory at a time."""

    def __init__(self, plan: Plan, record: Record, limit: int | None) -> None:
        self.plan, self.record, self.limit = plan, record, limit
        self.held: str = ""
        self.model: Decoder | None = None

    def cells(self, loads: list["Load"]) -> Cells:
        """A measurement for each of the loads."""
        return {load.name: functools.partial(self.measure, load) for load in loads}

    def measure(self, load: "Load") -> dict[str, Any]:
        """The cell of one load: its figures, or why it was skipped (too large, or no time left)."""
        from jkv.benchmark import gpu_decode

        plan, cells = self.plan, self.record.cells
        config = plan.models[load.model]
        need = gpu_decode.predicted_bytes(config, load.batch, load.budget) + gpu_decode.SLACK
        if load.batch < 1 or (self.limit is not None and need > self.limit):
            return {"skipped": f"needs {need / 1e9:.0f} GB" + (f" of {self.limit / 1e9:.0f}" if self.limit else "")}
        # Compiling takes nearly all of the time, and the cells before this one show how long that is.
        longest = max((cell.get("compile_s", 0.0) for cell in cells.values()), default=0.0)
        if self.record.left < max(plan.margin, 1.5 * longest):
            return {"skipped": "no time left", "again": True}
        if self.held != load.model:
            self.model = None  # frees the other model's weights before these are made
            gc.collect()
            self.model, self.held = gpu_decode.random_model(config), load.model
        assert self.model is not None
        gb_s = cells["copy"]["gb_s"]
        return gpu_decode.measure(load, self.model, steps=plan.steps, calls=plan.calls, gb_s=gb_s)


def _attempt(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A measurement's cell, even if it fails: the measurements after it should not be lost."""
    try:
        return measure()
    except Exception as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            return {"skipped": "out of memory"}
        return {"failed": f"{type(error).__name__}: {str(error)[:500]}"}
    finally:
        gc.collect()


def _line(name: str, cell: dict[str, Any]) -> str:
    """A cell in one line."""
    if "skipped" in cell:
        return f"{name}: skipped, {cell['skipped']}"
    if "failed" in cell:
        return f"{name}: FAILED, {cell['failed']}"
    units = {"tokens_s": "tokens/s", "gb_s": "GB/s", "ms": "ms", "error": "off", "compile_s": "s to compile"}
    return f"{name}: " + ", ".join(f"{cell[key]:.4g} {unit}" for key, unit in units.items() if key in cell)


def table(record: Record) -> Table:
    """The cells that have tokens/s, as a Markdown table."""
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
    """What the table's roofline is, and how many ops were right and how many cells have no figures."""
    cells = record.cells
    wrong = ", ".join(name for name, cell in cells.items() if cell.get("right") is False) or "none"
    right = sum(cell.get("right") is True for cell in cells.values())
    empty = sum("skipped" in cell or "failed" in cell for cell in cells.values())
    return (
        f"Roofline: bytes a step reads at {cells['copy'].get('gb_s', 0):,.0f} GB/s, the bandwidth of a copy. "
        f"Ops right: {right}; wrong: {wrong}. Cells without figures: {empty}."
    )


if __name__ == "__main__":
    run_command(main)
