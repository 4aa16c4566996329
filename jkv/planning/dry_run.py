"""``python -m jkv.sweep --dry-run``: what would run, how much it is at most, whether it fits. Nothing is decoded."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from rich import box
from rich.table import Table
from rich.text import Text

from jkv.config.sweep import Cell, SweepConfig
from jkv.errors import UserError
from jkv.planning import chips


@dataclasses.dataclass(frozen=True)
class Row:
    """A cell's size; None is unknown. weights, kv: bytes over all devices. fits: by the TPU's compiler, if asked."""

    cell: Cell
    samples: int | None
    tokens: int | None
    weights: int | None
    kv: int | None
    fits: bool | None = None


def say(config: SweepConfig) -> None:
    """Print the table. Raises UserError for whatever a sweep refuses without weights."""
    if config.topology is not None:
        chips.parse_topology(config.topology)
        chips.require()
        chips.prepare()  # before anything imports jax
    from rich.console import Console

    from jkv.terminal.screen import Screen

    rows = [_sized(cell) for cell in config.cells()]
    screen = Screen(stderr=True, quiet=config.quiet, highlight=False)
    if config.topology is not None:
        planned = []
        for row in _planned(rows, config):
            planned.append(row)
            done = f"{len(planned)} of {len(rows)}: {row.cell.name}"
            said = {None: "its config is not here", True: "fits", False: "does not fit"}[row.fits]
            screen.print(Text(f"{done}: {said}"), soft_wrap=True)
        rows = planned
    Console().print(_table(rows, config))
    if config.topology is None and not config.quiet:
        screen.print("add --topology v5e:2x4 (v5p:2x2x1, v6e:2x2 ...) to compile each run for a TPU", soft_wrap=True)


def _sized(cell: Cell) -> Row:
    """From the files that are here. What is only on the hub, and not known, stays None."""
    import jax.numpy as jnp
    import numpy as np

    from jkv.planning.models import model_config
    from jkv.tasks.load import count_problems

    with cell.named():
        policy = cell.config.make_policy()
        count, new = count_problems(cell.config.task, cell.config.limit), cell.config.new_tokens
        samples = None if count is None else count * cell.config.samples
        tokens = None if samples is None else samples * new
        prompts = _prompts(cell.config.model, cell.config.task, cell.config.limit)
        rule = cell.config.retention(policy, longest=new + max((len(p.prompt_ids) for p in prompts), default=0))
        for problem in prompts:
            rule.check_prompt(len(problem.prompt_ids), problem.where)
        try:
            model = model_config(cell.config.model)
        except UserError:
            if "/" not in cell.config.model:
                raise
            return Row(cell, samples, tokens, None, None)
    itemsize = np.dtype(jnp.dtype(_dtype(cell))).itemsize
    kv = model.kv_bytes(cell.config.batch_size, rule.budget, itemsize, cell.config.kv)
    return Row(cell, samples, tokens, _weight_bytes(model, _dtype(cell), cell.config.weights), kv)


@functools.cache
def _prompts(model: str, task: str, limit: int | None) -> list[Any]:
    """The task's problems as the model reads them, if both are here; else none. Benchmarks are not fetched for this."""
    import pathlib

    from converters.config import read_config
    from jkv.files.locate import DEMOS, locate
    from jkv.load import load_tokenizer
    from jkv.tasks import load_task
    from jkv.tasks.load import task_kind

    if task_kind(task) == "benchmark":
        return []
    if model not in DEMOS and not pathlib.Path(model).expanduser().is_dir():
        return []
    path = locate(model)
    tokenizer = load_tokenizer(path, read_config(path).vocab_size)
    return load_task(task, tokenizer, model=model, limit=limit)


def _dtype(cell: Cell) -> Literal["float32", "bfloat16"]:
    """What it is decoded in where it belongs: a demo on a CPU, all else on an accelerator."""
    return cell.config.dtype or ("float32" if cell.config.model.startswith("demo-") else "bfloat16")


@functools.cache
def _weight_bytes(config: Any, dtype: str, weights: str | None) -> int:
    """Of int8 weights scales included. Takes seconds, so once a model."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from jkv.models import Decoder
    from jkv.models.quantized import INT8, quantize_decoder

    def make() -> Decoder:
        model = Decoder(config, rngs=nnx.Rngs(0), dtype=jnp.dtype(dtype))
        if weights == INT8:
            quantize_decoder(model)
        return model

    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(nnx.state(nnx.eval_shape(make))))


def _planned(rows: Sequence[Row], config: SweepConfig) -> Iterator[Row]:
    """Each row with the compiler's word; runs that differ in task alone are compiled once."""
    import jax

    from jkv.config.plan import PlanConfig
    from jkv.planning.report import plan

    known: dict[str, dict[str, Any]] = {}
    names = {f.name for f in dataclasses.fields(PlanConfig)} - {
        "topology",
        "mesh",
        "budget",
        "dtype",
        "max_batch",
        "json",
    }
    for row in rows:
        cell = row.cell
        words: dict[str, Any] = {name: getattr(cell.config, name) for name in names}
        if row.weights is None:
            yield row
            continue
        # The full cache holds the longest prompt, too; 512 tokens are a guess at that.
        budget = cell.budget or cell.config.new_tokens + 512
        target = PlanConfig(
            **words, budget=budget, topology=str(config.topology), dtype=_dtype(cell), max_batch=False,
            mesh=config.mesh or _mesh(config, cell),
        )  # fmt: skip
        key = repr(target)  # options, too, change a program
        with cell.named():
            figures = known.get(key) or plan(target)
        known[key] = figures
        jax.clear_caches()
        yield dataclasses.replace(row, fits=figures["fits"])


def _mesh(config: SweepConfig, cell: Cell) -> str:
    """As many devices on the model axis as share its KV heads evenly, the others on rows."""
    import math

    from jkv.planning.models import model_config

    _, grid = chips.parse_topology(str(config.topology))
    devices, heads = math.prod(grid), model_config(cell.config.model).n_kv_heads
    model = math.gcd(devices, heads)
    return f"data={devices // model},model={model}"


def _table(rows: Sequence[Row], config: SweepConfig) -> Table:
    """A line a model, policy and budget; its tasks together."""
    from jkv.terminal.screen import human_bytes
    from jkv.terminal.text import visible

    number = lambda n: "?" if n is None else f"{n:,}"
    size = lambda n: "?" if n is None else human_bytes(n)
    total = lambda name, of: None if any(getattr(r, name) is None for r in of) else sum(getattr(r, name) for r in of)
    tasks = ", ".join(config.tasks)
    table = Table(
        title=Text(visible(f"{len(rows)} runs, tasks {tasks}")),
        title_justify="left",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,  # 80 columns hold it all
    )
    for heading in ("model", "policy"):
        table.add_column(heading, overflow="fold", min_width=8)
    headings = ["budget", "samples", "tokens\nat most", "weights", "KV buffer"]
    for heading in headings + ([f"fits\n{config.topology}"] if config.topology else []):
        table.add_column(heading, justify="right", no_wrap=True)
    for key in dict.fromkeys((r.cell.model, r.cell.label, r.cell.budget) for r in rows):
        model, label, budget = key
        mine = [r for r in rows if (r.cell.model, r.cell.label, r.cell.budget) == key]
        words = [Text(visible(model)), Text(visible(label)), "whole" if budget is None else str(budget)]
        numbers = [number(total("samples", mine)), number(total("tokens", mine))]
        fits = {None: "?", True: "yes", False: "no"}[mine[0].fits]
        sizes = [size(mine[0].weights), size(mine[0].kv)]
        table.add_row(*words, *numbers, *sizes, *([fits] if config.topology else []))
    table.caption = f"at most {number(total('tokens', rows))} tokens in all; bytes over all devices"
    table.caption_justify = "left"
    return table
