"""The training loop: every step is checkpointed, so that a killed run goes on where it was, bit for bit."""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jkv.errors import UserError
from jkv.files.whole import write_text
from jkv.models.predictor import Predictor
from jkv.predictor_training import fit, metrics
from jkv.predictor_training.fit import Recipe

LOG = "log.jsonl"
# Reads (hidden [n, D], label [n]) of a trace, by its index.
Read = Callable[[int], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass
class Data:
    """Traces to train on and those held out, by index, and how one is read."""

    train: Sequence[int]
    held_out: Sequence[int]
    read: Read


def train(
    recipe: Recipe,
    data: Data,
    initial: Predictor,
    out: pathlib.Path,
    *,
    save_every: int = 1,
    on_step: Callable[[list[dict[str, Any]], int, int], None] = lambda *_: None,
) -> tuple[Predictor, list[dict[str, Any]]]:
    """Run the schedule, or the rest of it. Returns the predictor and the log: a line a step {'step', 'epoch', 'loss'},
    and a line an epoch {'epoch', 'validation_loss', 'spearman', 'top20', ...}.

    out: where checkpoints and the log are.  save_every: steps between checkpoints; a killed run repeats what came after
    its last one, with the same result.  on_step(new lines, steps done, steps in all) is called after each.
    """
    per_epoch = recipe.steps_per_epoch(len(data.train))
    steps = per_epoch * recipe.epochs
    # A copy: every step gives its predictor away to the next one.
    everywhere = jax.sharding.NamedSharding(fit.data_sharding(recipe.micro_batch).mesh, jax.sharding.PartitionSpec())
    predictor = jax.device_put(jax.tree.map(jnp.copy, initial), everywhere)
    moments = jax.device_put(fit.optimizer(recipe, steps).init(predictor), everywhere)
    with _Checkpoints(out / "checkpoints") as checkpoints:
        done, state = checkpoints.latest((predictor, moments))
        predictor, moments = state
        log = _read_log(out / LOG, done)
        write_text(out / LOG, "".join(json.dumps(line) + "\n" for line in log))
        with open(out / LOG, "a", encoding="utf-8") as file:
            for step in range(done, steps):
                epoch, place = divmod(step, per_epoch)
                batch = recipe.batches(data.train, epoch)[place]
                predictor, moments, loss = _step(recipe, steps, step, predictor, moments, batch, data.read)
                lines: list[dict[str, Any]] = [{"step": step + 1, "epoch": epoch + 1, "loss": loss}]
                if place + 1 == per_epoch:
                    lines.append({"epoch": epoch + 1, **validate(recipe, predictor, data)})
                log += lines
                # Before the checkpoint: lines that no checkpoint covers are dropped, missing ones could not be made.
                file.writelines(json.dumps(line) + "\n" for line in lines)
                file.flush()
                if (step + 1) % save_every == 0 or step + 1 == steps:
                    checkpoints.save(step + 1, (predictor, moments))
                on_step(lines, step + 1, steps)
    return predictor, log


def _step(recipe: Recipe, steps: int, step: int, predictor, moments, batch: list[int], read: Read):
    rows = []
    for index in batch:
        hidden, label = read(index)
        rows.append((hidden, recipe.target(label)))
    tokens = sum(len(target) for _, target in rows)
    key = jax.random.fold_in(jax.random.key(recipe.seed), step)
    loss, gradients = jnp.float32(0), None
    sharding = fit.data_sharding(recipe.micro_batch)
    for number, part in enumerate(fit.micro_batches(rows, recipe.micro_batch)):
        part = jax.device_put(part, sharding)
        more, grads = fit.loss_and_gradients(recipe, predictor, part, jax.random.fold_in(key, number))
        loss = loss + more
        gradients = grads if gradients is None else jax.tree.map(jnp.add, gradients, grads)
    predictor, moments = fit.update(recipe, steps, predictor, moments, gradients, jnp.float32(tokens))
    return predictor, moments, float(loss) / tokens


def predictions(predictor: Predictor, data: Data, indices: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """(predicted, label) of each trace's thinking tokens."""
    pairs = []
    for index in indices:
        hidden, label = data.read(index)
        (part,) = fit.micro_batches([(hidden, label)], 1)
        pairs.append((np.asarray(fit.predict(predictor, part.hidden))[0, : len(label)], label))
    return pairs


def validate(recipe: Recipe, predictor: Predictor, data: Data) -> dict[str, float]:
    """Weighted squared error on scaled labels, rank correlation and overlap, over the held-out traces."""
    pairs = predictions(predictor, data, data.held_out)
    errors = 0.0
    for predicted, label in pairs:
        target = recipe.target(label)
        errors += float(np.sum(np.asarray(recipe.target.weights(jnp.asarray(target))) * (predicted - target) ** 2))
    return {"validation_loss": errors / sum(len(p) for p, _ in pairs), **metrics.score_traces(pairs)}


def _read_log(path: pathlib.Path, done: int) -> list[dict[str, Any]]:
    """The log up to step ``done``. A line that a killed process left unfinished is behind it."""
    if not path.exists() or not done:
        return []
    log = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            break
        if line.get("step", 0) > done:
            break
        log.append(line)
    if sum("step" in line for line in log) != done:
        raise UserError("is not the log of these checkpoints", where=str(path), mend="give a new --out")
    return log


class _Checkpoints:
    """The newest checkpoint of predictor and moments, in Orbax's format."""

    def __init__(self, path: pathlib.Path):
        import orbax.checkpoint as ocp

        self._ocp = ocp
        logging.getLogger("absl").setLevel(logging.ERROR)  # its pages of text are not for this command's users
        self.path = path.resolve()

    def __enter__(self) -> "_Checkpoints":
        options = self._ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
        self._manager = self._ocp.CheckpointManager(self.path, options=options)
        return self

    def __exit__(self, *_) -> None:
        self._manager.close()

    def latest(self, like: Any) -> tuple[int, Any]:
        """Steps done and the state after them; (0, ``like``) if there is none."""
        step = self._manager.latest_step()
        if step is None:
            return 0, like
        leaves, tree = jax.tree.flatten(like)
        target = {str(i): jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for i, x in enumerate(leaves)}
        try:
            found = self._manager.restore(step, args=self._ocp.args.StandardRestore(target))
        except Exception as error:  # a dozen types, and pages of text
            what = f"the checkpoint can't be read ({type(error).__name__})"
            mend = "give a new --out; --data takes labels from here"
            raise UserError(what, where=str(self.path), mend=mend) from None
        return step, jax.tree.unflatten(tree, [found[str(i)] for i in range(len(leaves))])

    def save(self, step: int, state: Any) -> None:
        """Returns when it is on disk."""
        leaves = {str(i): x for i, x in enumerate(jax.tree.leaves(state))}
        self._manager.save(step, args=self._ocp.args.StandardSave(leaves))
