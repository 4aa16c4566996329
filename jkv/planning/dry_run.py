"""``python -m jkv.sweep --dry-run``: the runs of a sweep, their sizes, and whether they fit a TPU. Nothing is decoded.

libtpu reads its environment variables when it is loaded, which is when JAX first looks for devices. What might make JAX
do so is imported inside the functions, after `print_dry_run` has called `chips.prepare`.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from rich import box
from rich.table import Table
from rich.text import Text

from jkv.config.sweep import Cell, SweepConfig
from jkv.errors import UserError
from jkv.planning import chips

if TYPE_CHECKING:
    from jkv.models.config import ModelConfig
    from jkv.tasks import Problem


@dataclasses.dataclass(frozen=True)
class Row:
    """The size of one run of a sweep. None stands for what isn't known.

    Attributes:
        cell: the run.
        samples: completions that it draws.
        tokens: new tokens at most, in all of its samples.
        weights: bytes of the model's weights, over all devices.
        kv: bytes of the KV buffer, over all devices.
        fits: whether the TPU's compiler finds that it fits, if a topology was given.
    """

    cell: Cell
    samples: int | None
    tokens: int | None
    weights: int | None
    kv: int | None
    fits: bool | None = None


def print_dry_run(config: SweepConfig) -> None:
    """Print a table of a sweep's runs. With a topology, compile each of them for it.

    Raises:
        UserError: whatever can be found wrong without the models' weights.
    """
    if config.topology is not None:
        chips.parse_topology(config.topology)
        chips.require()
        chips.prepare()
    from rich.console import Console

    from jkv.terminal.screen import Screen

    rows = [_size(cell) for cell in config.cells()]
    screen = Screen(stderr=True, quiet=config.quiet, highlight=False)
    if config.topology is not None:
        compiled = []
        for row in _compile(rows, config):
            compiled.append(row)
            result = {None: "its config is not here", True: "fits", False: "does not fit"}[row.fits]
            screen.print(Text(f"{len(compiled)} of {len(rows)}: {row.cell.name}: {result}"), soft_wrap=True)
        rows = compiled
    Console().print(_table(rows, config))
    if config.topology is None and not config.quiet:
        screen.print("add --topology v5e:2x4 (v5p:2x2x1, v6e:2x2 ...) to compile each run for a TPU", soft_wrap=True)


def _size(cell: Cell) -> Row:
    """A run's size, from files on this machine. What could only be learned from the hub is None."""
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
def _prompts(model: str, task: str, limit: int | None) -> list["Problem"]:
    """A task's problems, encoded by the model's tokenizer, if both are on this machine; else none.

    Of benchmarks there are none, since nothing is fetched for a dry run.
    """
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
    """A run's dtype. Unless it is given, demo models are taken to run on a CPU, all others on an accelerator."""
    return cell.config.dtype or ("float32" if cell.config.model.startswith("demo-") else "bfloat16")


@functools.cache
def _weight_bytes(config: "ModelConfig", dtype: str, weights: str | None) -> int:
    """Bytes of a model's weights; of int8 weights the scales, too. Takes seconds, so once a model."""
    import jax
    from flax import nnx

    from jkv.planning.models import abstract_decoder

    model = abstract_decoder(config, dtype, weights)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(nnx.state(model)))


def _compile(rows: Sequence[Row], config: SweepConfig) -> Iterator[Row]:
    """The rows, each with whether it fits. Runs that differ in nothing but their task are compiled once."""
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
        shared: dict[str, Any] = {name: getattr(cell.config, name) for name in names}
        if row.weights is None:
            yield row
            continue
        # The full cache has to hold the longest prompt, too. Its length isn't known: 512 tokens are a guess.
        budget = cell.budget or cell.config.new_tokens + 512
        target = PlanConfig(
            **shared, budget=budget, topology=str(config.topology), dtype=_dtype(cell), max_batch=False,
            mesh=config.mesh or _mesh(config, cell),
        )  # fmt: skip
        key = repr(target)  # it can't be hashed: a policy's options are a dict
        with cell.named():
            figures = known.get(key) or plan(target)
        known[key] = figures
        jax.clear_caches()
        yield dataclasses.replace(row, fits=figures["fits"])


def _mesh(config: SweepConfig, cell: Cell) -> str:
    """The mesh, where none is given: as many devices on `model` as share the KV heads evenly, the others on `data`."""
    import math

    from jkv.planning.models import model_config

    _, grid = chips.parse_topology(str(config.topology))
    devices, heads = math.prod(grid), model_config(cell.config.model).n_kv_heads
    model = math.gcd(devices, heads)
    return f"data={devices // model},model={model}"


def _table(rows: Sequence[Row], config: SweepConfig) -> Table:
    """The table: a line for each model, policy and budget, in which tasks are added up."""
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
        show_edge=False,  # so that it fits into 80 columns
    )
    for heading in ("model", "policy"):
        table.add_column(heading, overflow="fold", min_width=8)
    headings = ["budget", "samples", "tokens\nat most", "weights", "KV buffer"]
    for heading in headings + ([f"fits\n{config.topology}"] if config.topology else []):
        table.add_column(heading, justify="right", no_wrap=True)
    for key in dict.fromkeys((r.cell.model, r.cell.label, r.cell.budget) for r in rows):
        model, label, budget = key
        tasks_rows = [r for r in rows if (r.cell.model, r.cell.label, r.cell.budget) == key]
        names = [Text(visible(model)), Text(visible(label)), "whole" if budget is None else str(budget)]
        numbers = [number(total("samples", tasks_rows)), number(total("tokens", tasks_rows))]
        sizes = [size(tasks_rows[0].weights), size(tasks_rows[0].kv)]
        fits = {None: "?", True: "yes", False: "no"}[tasks_rows[0].fits]
        table.add_row(*names, *numbers, *sizes, *([fits] if config.topology else []))
    table.caption = f"at most {number(total('tokens', rows))} tokens in all; bytes over all devices"
    table.caption_justify = "left"
    return table
