"""The training loop. It is checkpointed, so that a killed run continues and ends with the same weights, bit for bit."""

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
from jkv.predictor_training.fit import Moments, Recipe

LOG = "log.jsonl"
# From a trace's index to the (hidden [n, D], label [n]) of its n thinking tokens.
Read = Callable[[int], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass
class Data:
    """The data of a training.

    Attributes:
        train: indices of the traces to train on.
        held_out: indices of the traces to validate on.
        read: gives a trace's hidden states and labels.
    """

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
    """Train a predictor, or continue a training that was stopped.

    Args:
        recipe: how to train.
        data: what to train on.
        initial: the weights to begin with.
        out: directory of the checkpoints and the log.
        save_every: steps between checkpoints. A killed training repeats the steps since its last checkpoint, with the
            same result.
        on_step: called after each step with (new lines of the log, steps done, steps in all).

    Returns:
        The trained predictor, and the log: a line for each step, {'step', 'epoch', 'loss'}, and one for each epoch,
        {'epoch', 'validation_loss', 'spearman', 'top20', 'top30', 'top40'}.

    Raises:
        UserError: the checkpoint or the log in ``out`` can't be read or don't belong together.
    """
    per_epoch = recipe.steps_per_epoch(len(data.train))
    steps = per_epoch * recipe.epochs
    # A copy, since every step donates its predictor's buffers to the next one.
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
                # Before the checkpoint: a line too many can be dropped when the training continues (`_read_log`), a
                # line too few could not be made up.
                file.writelines(json.dumps(line) + "\n" for line in lines)
                file.flush()
                if (step + 1) % save_every == 0 or step + 1 == steps:
                    checkpoints.save(step + 1, (predictor, moments))
                on_step(lines, step + 1, steps)
    return predictor, log


def _step(
    recipe: Recipe, steps: int, step: int, predictor: Predictor, moments: Moments, batch: list[int], read: Read
) -> tuple[Predictor, Moments, float]:
    """Step number ``step`` (from 0) of ``steps``: the new weights and optimizer state, and the mean loss of a token."""
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
    """What a predictor gives for some traces.

    Args:
        predictor: its weights.
        data: has the traces.
        indices: which of them.

    Returns:
        (predicted, label), [n] both, for the thinking tokens of each trace.
    """
    pairs = []
    for index in indices:
        hidden, label = data.read(index)
        (part,) = fit.micro_batches([(hidden, label)], 1)
        pairs.append((np.asarray(fit.predict(predictor, part.hidden))[0, : len(label)], label))
    return pairs


def validate(recipe: Recipe, predictor: Predictor, data: Data) -> dict[str, float]:
    """How good a predictor is on the held-out traces.

    Returns:
        'validation_loss', the weighted squared error of a token (whatever the loss in training is), and the scores of
        `jkv.predictor_training.metrics.score_traces`.
    """
    pairs = predictions(predictor, data, data.held_out)
    errors = 0.0
    for predicted, label in pairs:
        target = recipe.target(label)
        errors += float(np.sum(np.asarray(recipe.target.weights(jnp.asarray(target))) * (predicted - target) ** 2))
    return {"validation_loss": errors / sum(len(p) for p, _ in pairs), **metrics.score_traces(pairs)}


def _read_log(path: pathlib.Path, done: int) -> list[dict[str, Any]]:
    """The lines of the log up to step ``done``.

    Later lines are dropped, the last of which a killed process may have left unfinished.
    """
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
    """The newest checkpoint of the predictor and the optimizer's state, in Orbax's format. A context manager."""

    def __init__(self, path: pathlib.Path) -> None:
        import orbax.checkpoint as ocp

        self._ocp = ocp
        logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax logs pages of text
        self.path = path.resolve()

    def __enter__(self) -> "_Checkpoints":
        options = self._ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
        self._manager = self._ocp.CheckpointManager(self.path, options=options)
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def latest(self, like: Any) -> tuple[int, Any]:
        """The newest checkpoint.

        Args:
            like: a pytree of the same structure, shapes and shardings.

        Returns:
            How many steps are done, and the state after them; (0, ``like``) if there is no checkpoint.

        Raises:
            UserError: the checkpoint can't be read.
        """
        step = self._manager.latest_step()
        if step is None:
            return 0, like
        leaves, tree = jax.tree.flatten(like)
        target = {str(i): jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for i, x in enumerate(leaves)}
        try:
            found = self._manager.restore(step, args=self._ocp.args.StandardRestore(target))
        except Exception as error:  # of many types, with pages of text
            what = f"the checkpoint can't be read ({type(error).__name__})"
            mend = "give a new --out; --data takes labels from here"
            raise UserError(what, where=str(self.path), mend=mend) from None
        return step, jax.tree.unflatten(tree, [found[str(i)] for i in range(len(leaves))])

    def save(self, step: int, state: Any) -> None:
        """Write the state after ``step`` steps. It is on the disk when this returns."""
        leaves = {str(i): x for i, x in enumerate(jax.tree.leaves(state))}
        self._manager.save(step, args=self._ocp.args.StandardSave(leaves))
