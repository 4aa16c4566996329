"""A plan: whether a run fits a TPU topology, its memory, roofline and largest batch, as a dict and as a table."""

import contextlib
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from rich.table import Table

from jkv.config.plan import PlanConfig
from jkv.distributed.choose_mesh import AUTO, settle_mesh
from jkv.distributed.mesh import parse_mesh
from jkv.engine.sampling import make_sampler
from jkv.files.shipped import OF_HUB
from jkv.ops.sharding import DATA, MODEL
from jkv.planning import hlo
from jkv.planning.chips import Chip, topology_devices
from jkv.planning.compile import (
    Compiled,
    OutOfMemory,
    Target,
    abstract_parameters,
    compile_decode,
    compile_prefill,
)
from jkv.planning.models import PUBLISHED_WIDTHS, model_config, shipped
from jkv.planning.step_bytes import kv_bytes, mean_occupancy, shard_bytes, step_bytes
from jkv.terminal.screen import human_bytes

COMPILATIONS = 5  # batch sizes at which `largest_batch` compiles the decode program, at most


def target_of(config: PlanConfig) -> tuple[Chip, Target]:
    """The TPU generation that a configuration names, and the run to compile for it.

    Raises:
        UserError: whatever can be found wrong before compiling: the topology, the model, the mesh, the budget.
    """
    decode_config = config.decode()
    policy = decode_config.make_policy()
    model = model_config(config.model)
    assert config.budget is not None
    rule = decode_config.retention(policy, longest=config.budget)
    chip, devices = topology_devices(config.topology)
    dtype = jnp.dtype(config.dtype)
    if config.mesh != AUTO:
        parse_mesh(config.mesh, len(devices))
    mesh = settle_mesh(
        config.mesh, model, rows=config.batch_size, slots=rule.budget, dtype=dtype, weights=config.weights,
        kv=config.kv, devices=devices, usable=chip.usable,
    )  # fmt: skip
    assert mesh is not None
    widths = PUBLISHED_WIDTHS if OF_HUB.get(config.model, config.model) in shipped() else None
    policy, parameters = abstract_parameters(policy, model, dtype, widths)
    sampler = make_sampler(config.temperature, config.top_p, config.top_k)
    return chip, Target(
        model, mesh, policy, parameters, rule, sampler, dtype, config.implementation, weights=config.weights,
        kv=config.kv,
    )  # fmt: skip


def plan(config: PlanConfig, show: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Compile a run's programs, and search its largest batch if the configuration asks for it.

    Args:
        config: what to compile, and for which topology.
        show: called before each compilation, with a line for the user.

    Returns:
        What ``python -m jkv.plan --json`` prints. Bytes are those of one chip. None stands for a figure of a program
        that the compiler refused.

    Raises:
        UserError: whatever can be found wrong before compiling.
    """
    chip, target = target_of(config)
    rows = config.batch_size
    measured: dict[int, Compiled] = {}
    refused: dict[int, OutOfMemory] = {}

    def decode_at(rows: int) -> Compiled | None:
        """The decode program of ``rows`` rows, compiled once; None if the compiler refuses it."""
        if rows not in measured and rows not in refused:
            show(f"compiling decode, {target.config.n_layers} layers, {rows} rows")
            try:
                measured[rows] = compile_decode(target, rows)
            except OutOfMemory as error:
                refused[rows] = error
                return None
        return measured.get(rows)

    decode = decode_at(rows)
    show("compiling prefill")
    prefill = None
    with contextlib.suppress(OutOfMemory):
        prefill = compile_prefill(target, rows, decode.formats if decode else None)
    usable = chip.usable
    fits = decode is not None and prefill is not None and max(decode.peak, prefill.peak) <= usable
    seconds = sum(c.seconds for c in (decode, prefill) if c is not None)
    figures = _figures(config, chip, target, decode, prefill, fits, seconds)
    if decode is None and (required := refused[rows].required) is not None:
        held = sum(figures[name] for name in ("weights_bytes", "kv_bytes", "state_bytes", "policy_bytes"))
        figures |= {"peak_bytes": required, "temp_bytes": required - held}
    if config.max_batch:
        unit = target.mesh.shape[DATA]
        # Prefill reads one row's prompt at a time, so its temporaries are the same for every batch.
        prefill_temporaries = prefill.temporaries if prefill is not None else 0

        def peak_at(rows: int) -> int | None:
            """Bytes of the larger of both programs; of a refused one those that the compiler names, if it does."""
            compiled = decode_at(rows)
            if compiled is None:
                return refused[rows].required
            return max(compiled.peak, compiled.peak - compiled.temporaries + prefill_temporaries)

        unit_bytes = (figures["kv_bytes"] + figures["state_bytes"]) * unit // rows
        figures["max_batch"] = largest_batch(unit, rows, usable, unit_bytes, peak_at)
    return figures


def largest_batch(unit: int, start: int, usable: int, unit_bytes: int, peak_at: Callable[[int], int | None]) -> int:
    """The largest batch whose program fits, found with at most `COMPILATIONS` calls of ``peak_at``.

    The batch that is returned has been compiled. That the next larger one doesn't fit is known by compiling it, or
    from the straight line through batches that were compiled.

    Args:
        unit: batches are multiples of it: the devices that share the rows.
        start: rows of the first batch to try.
        usable: bytes that a program may have.
        unit_bytes: bytes that ``unit`` rows add to a program at the least: their KV buffer and state.
        peak_at: compiles the program of so many rows and returns its bytes; None if the compiler refuses it for
            another reason than its bytes. (At thousands of rows a chip's scalar memory is full.)

    Returns:
        Rows; 0 if not even ``unit`` rows fit. Where a larger batch was refused for another reason than its bytes, some
        batch between the two may fit as well.
    """
    peaks: dict[int, int] = {}  # by units of rows
    refused: set[int] = set()
    guess, fitting = max(1, start // unit), 0
    for _ in range(COMPILATIONS):
        peak = peak_at(guess * unit)
        if peak is None:
            refused.add(guess)
        else:
            peaks[guess] = peak
        fitting = max((n for n, peak in peaks.items() if peak <= usable), default=0)
        too_large = min((*refused, *(n for n, peak in peaks.items() if peak > usable)), default=math.inf)
        if too_large == fitting + 1:
            break
        if refused and too_large == min(refused):
            # Its bytes are unknown, so there is no line to follow: try the geometric mean, or an eighth if none fits.
            middle = math.isqrt(fitting * int(too_large))
            guess = int(max(middle, fitting + 1) if fitting else max(1, int(too_large) // 8))
            continue
        # Arguments grow linearly with the rows and temporaries nearly so: the next guess is where the line through the
        # two batches that are nearest to ``usable`` reaches it.
        near = sorted(peaks, key=lambda n: abs(peaks[n] - usable))[:2]
        growth = unit_bytes if len(near) < 2 else (peaks[near[0]] - peaks[near[1]]) / (near[0] - near[1])
        guess = near[0] + math.floor((usable - peaks[near[0]]) / max(growth, unit_bytes))
        guess = int(min(max(guess, fitting, 1), too_large - 1))
        if guess == fitting:
            break
    return fitting * unit


def _figures(
    config: PlanConfig,
    chip: Chip,
    target: Target,
    decode: Compiled | None,
    prefill: Compiled | None,
    fits: bool,
    seconds: float,
) -> dict[str, Any]:
    """The figures of a plan; None for a program stands for one that the compiler refused."""
    rows, mesh, rule = config.batch_size, target.mesh, target.rule
    _, weights, state, parameters = target.arguments(rows)
    kv = kv_bytes(target, rows)
    parts = step_bytes(target, rows)
    total = sum(size for part, size in parts.items() if part != "evict")
    c = target.config
    shape = (rows // mesh.shape[DATA], c.n_kv_heads // mesh.shape[MODEL], rule.budget, c.head_dim)
    text = decode.text if decode else ""
    return {
        "model": config.model,
        "topology": config.topology,
        "mesh": dict(mesh.shape),
        "policy": config.policy,
        "granularity": rule.granularity,
        "batch_size": rows,
        "budget": rule.budget,
        "retain": rule.retain,
        "window": rule.window,
        "dtype": config.dtype,
        "weights": config.weights,
        "kv": config.kv,
        "fits": fits,
        "hbm_bytes": chip.hbm,
        "usable_bytes": chip.usable,
        "weights_bytes": shard_bytes(weights),
        "kv_bytes": kv,
        "state_bytes": shard_bytes(state) - kv,
        "policy_bytes": shard_bytes(parameters),
        "temp_bytes": decode.temporaries if decode else None,
        "prefill_temp_bytes": prefill.temporaries if prefill else None,
        "argument_bytes": decode.arguments if decode else None,
        "peak_bytes": max(x.peak for x in (decode, prefill)) if decode and prefill else None,
        "alias_bytes": decode.aliased if decode else None,
        "kv_copies": len(hlo.kv_copies(text, shape)) if decode else None,
        "kernels": dict(hlo.kernels(text)),
        "prefill_kernels": dict(hlo.kernels(prefill.text)) if prefill else {},
        "collectives": hlo.collectives(text),
        "compile_s": round(seconds, 1),
        "step_bytes": total,
        "step_bytes_parts": parts,
        "mean_slots": mean_occupancy(target),
        "roofline_tps": round(rows / (total / chip.bandwidth), 1),
        "bandwidth": chip.bandwidth,
        "max_batch": None,
    }


def table(figures: dict[str, Any]) -> Table:
    """The figures of `plan` as a table."""
    f = figures
    size = lambda name: "refused by the compiler" if f[name] is None else human_bytes(f[name])
    mesh = ",".join(f"{axis}={n}" for axis, n in f["mesh"].items())
    title = f"{f['model']} on {f['topology']} ({mesh}), {f['policy']}, batch {f['batch_size']}, budget {f['budget']}"
    shown = Table(title=title, show_header=False, title_justify="left")
    shown.add_column()
    shown.add_column(justify="right")
    for name, value in (
        ("fits", "yes" if f["fits"] else "no"),
        ("weights a chip", size("weights_bytes")),
        ("KV a chip", size("kv_bytes")),
        ("other state a chip", human_bytes(f["state_bytes"] + f["policy_bytes"])),
        ("temporaries of decode", size("temp_bytes")),
        ("temporaries of prefill", size("prefill_temp_bytes")),
        ("HBM a chip, of which a program may use", f"{human_bytes(f['hbm_bytes'])}, {human_bytes(f['usable_bytes'])}"),
        ("largest batch that fits", "not searched" if f["max_batch"] is None else f"{f['max_batch']:,}"),
        ("KV-sized copies in a decode call", "unknown" if f["kv_copies"] is None else str(f["kv_copies"])),
        (f"bytes a step and chip, at {f['mean_slots']:,.0f} slots", human_bytes(f["step_bytes"])),
        ("tokens/s at the roofline", f"{f['roofline_tps']:,.0f}"),
        ("seconds to compile", f"{f['compile_s']:.0f}"),
    ):
        shown.add_row(name, value)
    return shown
