"""The three stages of ``python -m jkv.train_predictor``. The same command again continues the one that was stopped.

1. Traces: the model completes the task's problems with the full cache.
2. Labels: each trace is read once more, and what its thinking tokens are worth is stored.
3. Training: the predictor learns the labels from the hidden states.
"""

import dataclasses
import hashlib
import json
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from rich.table import Table

from jkv.config.decode import DecodeConfig
from jkv.config.train_predictor import DEMO_LIMIT, TrainConfig
from jkv.distributed import hosts
from jkv.distributed.choose_mesh import mesh_text
from jkv.distributed.weights import place_weights
from jkv.errors import UserError
from jkv.files.whole import write_json
from jkv.load import Loaded, default_dtype, load
from jkv.models.predictor import Predictor, random_predictor, save_predictor
from jkv.predictor_training import metrics, pictures
from jkv.predictor_training.fit import Recipe
from jkv.predictor_training.labels import Labeller
from jkv.predictor_training.progress import StageProgress
from jkv.predictor_training.store import Store
from jkv.predictor_training.targets import target_of
from jkv.predictor_training.traces import Trace, hold_out, select_traces, think_tokens
from jkv.predictor_training.training import Data, predictions, train
from jkv.run.decode import run
from jkv.run.opening import AtHand, run_mesh
from jkv.tasks import Problem, load_task
from jkv.terminal.screen import Screen, busy, human_bytes


def train_predictor(config: TrainConfig, *, show: bool = True) -> dict[str, Any]:
    """Run the three stages, or what is left of them.

    Args:
        config: what to train, and on what.
        show: print a table of the scores when done.

    Returns:
        The summary, which is also written to summary.json.

    Raises:
        UserError: something that the user can mend. What was made until then stays and is used again.
    """
    hosts.refuse("train_predictor")
    out = pathlib.Path(config.directory).expanduser()
    data = pathlib.Path(config.data).expanduser() if config.data else out
    screen = Screen(stderr=True, quiet=config.quiet, highlight=False)
    mesh = run_mesh(_decode_config(config, data))
    with busy(f"loading {config.model}", quiet=config.quiet):
        loaded = load(config.model, default_dtype(config.dtype), None if mesh is None else place_weights(mesh))
        think = think_tokens(loaded.tokenizer, config.model)
        limit = DEMO_LIMIT if config.limit is None and config.task == "demo" else config.limit
        problems = load_task(config.task, loaded.tokenizer, model=loaded.name, limit=limit, seed=config.seed)
    n_layers = loaded.config.n_layers
    if config.layer is not None and config.layer >= n_layers:
        raise UserError(f"{config.layer} is none of the model's {n_layers} layers (from 0)", where="--layer")
    if all(problem.answer is None for problem in problems):
        what = "no problem has an answer, so no trace is known to be right"
        raise UserError(what, where=config.task, mend="give a task with answers")

    screen.print(f"1 of 3, traces: {len(problems)} problems, {config.samples} each, full cache", soft_wrap=True)
    config = dataclasses.replace(config, mesh=mesh_text(mesh))
    traces = _make_traces(config, loaded, problems, data, think, screen)
    screen.print("2 of 3, labels")
    labeller = Labeller(loaded.model, horizon=config.horizon, layer=config.layer, mesh=mesh)
    store = _make_labels(config, labeller, traces, data, screen)
    screen.print(f"3 of 3, training on label {config.label!r}", soft_wrap=True)
    summary = _train_on_labels(config, loaded, labeller, traces, store, out, screen)
    if show and not config.quiet:
        Screen(highlight=False).print(_scores_table(summary, out))
    return summary


def _decode_config(config: TrainConfig, data: pathlib.Path) -> DecodeConfig:
    """The configuration of the run that makes the traces."""
    shared = ("model", "dtype", "task", "limit", "samples", "batch_size", "max_new_tokens", "temperature", "top_p",
              "top_k", "seed", "mesh", "quiet")  # fmt: skip
    arguments = {name: getattr(config, name) for name in shared}
    return DecodeConfig(policy="full", out=str(data / "traces"), **arguments)


def _make_traces(
    config: TrainConfig,
    loaded: Loaded,
    problems: list[Problem],
    data: pathlib.Path,
    think: tuple[int, int],
    screen: Screen,
) -> list[Trace]:
    """The first stage: decode what isn't decoded yet, and take the completions that are traces.

    think: ids of <think> and </think>. Raises UserError if no completion is a trace.
    """
    run(_decode_config(config, data), AtHand(loaded, problems))
    lines = (data / "traces" / "samples.jsonl").read_bytes().splitlines()
    traces, counts = select_traces(
        map(json.loads, lines), {p.id: p.prompt_ids for p in problems}, think=think,
        eos_ids=loaded.config.eos_ids, longest=config.max_length,
    )  # fmt: skip
    if not traces:
        mend = "give other problems, more --samples or more --max-new-tokens"
        raise UserError(f"no trace to learn from: {counts}", where=config.task, mend=mend)
    screen.print(str(counts), soft_wrap=True)
    return traces


def _make_labels(
    config: TrainConfig, labeller: Labeller, traces: list[Trace], data: pathlib.Path, screen: Screen
) -> Store:
    """The second stage: label the traces that aren't labelled yet."""
    with_hidden = config.hidden == "store"
    layer = "final" if config.layer is None else f"layer{config.layer}"
    name = f"{layer}-horizon{config.horizon}" + ("" if with_hidden else "-labels-only")
    store = Store(data / "labels" / name, hidden=with_hidden)
    todo = [trace for trace in traces if trace not in store]
    groups = list(_groups_of_similar_length(todo, labeller.at_once))
    if groups:
        with busy("compiling", quiet=config.quiet):
            labeller(groups[0])
    started, tokens = time.perf_counter(), 0
    with StageProgress(screen, "labelling", len(traces), len(traces) - len(todo)) as progress:
        for group in groups:
            for trace, labels in zip(group, labeller(group), strict=True):
                store.add(trace, labels)
                tokens += trace.length
            speed = f"{tokens / (time.perf_counter() - started):,.0f} tokens/s"
            progress.update(progress.done + len(group), speed)
    thinking = sum(trace.think_end - trace.think_start - 1 for trace in traces)
    size = sum(store.file(trace).stat().st_size for trace in traces)
    screen.print(
        f"{thinking:,} thinking tokens labelled ({len(todo)} traces now, {len(traces) - len(todo)} before), "
        f"{human_bytes(size)}",
        soft_wrap=True,
    )
    return store


def _groups_of_similar_length(traces: list[Trace], size: int) -> Iterator[list[Trace]]:
    """Groups of at most ``size`` traces, the longest first: if memory is too small for them, that shows at once."""
    ordered = sorted(traces, key=lambda trace: -trace.length)
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


def _train_on_labels(
    config: TrainConfig, loaded: Loaded, labeller: Labeller, traces: list[Trace], store: Store, out: pathlib.Path,
    screen: Screen,
) -> dict[str, Any]:  # fmt: skip
    """The third stage: train the predictor, or continue its training. Returns the summary."""
    target = target_of(
        loaded.config.architecture, config.scaling, config.scale, exponent=config.exponent,
        band_weight=config.band_weight,
    )  # fmt: skip
    recipe = Recipe(
        loss=config.loss, target=target, learning_rate=config.learning_rate, epochs=config.epochs, batch=config.batch,
        micro_batch=config.micro_batch, seed=config.seed, warm_up=config.warm_up, weight_decay=config.weight_decay,
        clip=config.clip,
    )  # fmt: skip
    train_on, held_out = hold_out(traces, config.held_out, config.seed)
    reader = _TraceReader(traces, store, labeller, config)
    data = Data(train_on, held_out, reader)
    initial = random_predictor(loaded.config.d_model, config.seed, wide=config.wide, narrow=config.narrow)
    identity = _training_identity(config, recipe, initial, traces)
    _check_identity(out / "training", identity)

    known = metrics.baselines([reader.labels(i) for i in held_out], config.seed)
    total = recipe.steps_per_epoch(len(train_on)) * recipe.epochs
    with StageProgress(screen, "training", total, 0) as progress:

        def on_step(lines: list[dict[str, Any]], done: int, _: int) -> None:
            """Show the step, and the scores after an epoch: of about fifteen epochs, spread over the training."""
            progress.update(done, f"loss {lines[0]['loss']:.4g}")
            for line in lines[1:]:
                if line["epoch"] % max(1, recipe.epochs // 15) == 0:
                    screen.print(_epoch_line(line), soft_wrap=True)

        predictor, log = train(recipe, data, initial, out / "training", save_every=config.save_every, on_step=on_step)
    return _write_results(config, traces, data, predictor, log, known, identity, out)


def _write_results(
    config: TrainConfig, traces: list[Trace], data: Data, predictor: Predictor, log: list[dict[str, Any]],
    known: dict[str, dict[str, float]], identity: dict[str, Any], out: pathlib.Path,
) -> dict[str, Any]:  # fmt: skip
    """Write the predictor, the summary and the pictures. known: scores of the orders to compare with."""
    pairs = predictions(predictor, data, data.held_out)
    scores = {"predictor": metrics.score_traces(pairs), **known}
    summary = {
        **identity, "train_traces": len(data.train), "held_out_traces": len(data.held_out),
        "steps": sum("step" in line for line in log), "held_out": scores,
    }  # fmt: skip
    save_predictor(out / "predictor.safetensors", predictor, {"layer": config.layer, **summary})
    write_json(out / "summary.json", summary)
    pictures.draw_training(out, log, known)
    shown = max(range(len(pairs)), key=lambda i: len(pairs[i][0]))
    pictures.draw_trace(out, *pairs[shown], title=f"{config.model}, {traces[data.held_out[shown]].id}")
    return summary


def _scores_table(summary: dict[str, Any], out: pathlib.Path) -> Table:
    """The scores on held-out traces."""
    scores = summary["held_out"]
    table = Table("held out", title=f"{summary['held_out_traces']} traces, {out / 'predictor.safetensors'}")
    for name in scores["predictor"]:
        table.add_column(name, justify="right")
    for name, row in scores.items():
        table.add_row(name, *(f"{x:.3f}" for x in row.values()))
    return table


class _TraceReader:
    """From a trace's index to the hidden states and labels of its thinking tokens (`training.Read`).

    They are read from disk. Hidden states that aren't stored are computed by the model each time.
    """

    def __init__(self, traces: list[Trace], store: Store, labeller: Labeller, config: TrainConfig) -> None:
        self.traces, self.store, self.labeller, self.label = traces, store, labeller, config.label

    def __call__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        trace = self.traces[index]
        stored = self.store.read(trace)
        hidden = stored.hidden
        if hidden is None:
            (labels,) = self.labeller([trace])
            hidden = np.asarray(labels.hidden)[trace.thinking]
        return hidden, getattr(stored, self.label)

    def labels(self, index: int) -> np.ndarray:
        """A trace's labels alone, [n]."""
        return getattr(self.store.read(self.traces[index]), self.label)


def _training_identity(config: TrainConfig, recipe: Recipe, initial: Predictor, traces: list[Trace]) -> dict[str, Any]:
    """What has to be the same for a training to be continued. It is also a part of summary.json."""
    digest = hashlib.sha256(json.dumps([dataclasses.astuple(trace) for trace in traces]).encode()).hexdigest()[:16]
    names = ("model", "task", "label", "horizon", "layer", "held_out")
    return json.loads(json.dumps({
        **{name: getattr(config, name) for name in names},
        **dataclasses.asdict(recipe), "held_out_share": config.held_out,
        "widths": [list(kernel.shape) for kernel in initial], "traces": digest,
    }))  # fmt: skip


def _check_identity(path: pathlib.Path, identity: dict[str, Any]) -> None:
    """Make the directory ``path`` that of this training. Raises UserError if it is already that of another one."""
    path.mkdir(parents=True, exist_ok=True)
    file = path / "config.json"
    if file.exists():
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            before = {}
        changed = [name for name in identity if not isinstance(before, dict) or before.get(name) != identity[name]]
        if changed:
            name = changed[0]
            old = before.get(name) if isinstance(before, dict) else None
            what = f"was trained with another config ({name} {old!r}, now {identity[name]!r})"
            mend = "give a new --out; --data takes traces and labels from this one"
            raise UserError(what, where=str(path), mend=mend)
    write_json(file, identity)


def _epoch_line(line: dict[str, Any]) -> str:
    """An epoch's line of the log, for the user."""
    return (
        f"epoch {line['epoch']}: held-out loss {line['validation_loss']:.4g}, Spearman {line['spearman']:.3f}, "
        f"overlap of the top 20/30/40 %: {line['top20']:.3f} {line['top30']:.3f} {line['top40']:.3f}"
    )
