"""Optimizer, batches and the training step of the importance predictor.

Only the predictor is trained. The model has given the hidden states before, and its weights stay as they are.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jkv.axes import Array, Bool, Float
from jkv.models.predictor import Predictor, importance
from jkv.predictor_training.targets import Target, ranking, squared_error
from jkv.pytree import pytree

Moments = Any  # optax's state of the optimizer: a pytree of its own kind


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that the trained weights depend on, but the data and the initial weights.

    Attributes:
        loss: 'mse' for the weighted squared error, 'ranking' for the pairwise loss.
        target: what the predictor should give for a label.
        learning_rate: the highest, at the end of the warm-up.
        epochs: how often each trace is seen.
        batch: traces a step.
        micro_batch: traces of a step that are computed together. Memory depends on it; the result only by rounding.
        seed: of the order of traces, and of the partners in the pairwise loss.
        warm_up: share of the steps over which the learning rate rises.
        weight_decay: AdamW's.
        clip: largest norm of a step's gradients.
    """

    loss: Literal["mse", "ranking"]
    target: Target
    learning_rate: float
    epochs: int
    batch: int
    micro_batch: int
    seed: int
    warm_up: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0

    def steps_per_epoch(self, traces: int) -> int:
        """Steps of an epoch over so many traces; the last one may have a smaller batch."""
        return -(-traces // self.batch)

    def batches(self, traces: Sequence[int], epoch: int) -> list[list[int]]:
        """The traces of each step of an epoch, in an order that depends on the epoch (from 0) and the seed."""
        order = np.random.default_rng([self.seed, 0, epoch]).permutation(np.asarray(traces)).tolist()
        return [order[i : i + self.batch] for i in range(0, len(order), self.batch)]


@functools.cache
def optimizer(recipe: Recipe, steps: int) -> optax.GradientTransformation:
    """AdamW (betas 0.9 and 0.95) with gradients clipped by their norm.

    The learning rate rises linearly over the warm-up, and then falls to 0 as a cosine.

    Args:
        recipe: has its numbers.
        steps: of the whole training.
    """
    warm = max(1, round(recipe.warm_up * steps))
    rate = optax.warmup_cosine_decay_schedule(0.0, recipe.learning_rate, warm, max(steps, warm + 1))
    # The rate at count 0 is 0, and the first step would change nothing: the first step has count 1.
    later = lambda count: rate(count + 1)
    return optax.chain(
        optax.clip_by_global_norm(recipe.clip),
        optax.adamw(later, b1=0.9, b2=0.95, weight_decay=recipe.weight_decay),
    )


@pytree
class Batch:
    """The thinking tokens of some traces, padded to one length.

    Attributes:
        hidden: their hidden states.
        target: what the predictor should give for them.
        valid: which tokens there are; the others are padding.
    """

    hidden: Float[Array, "B T D"]
    target: Float[Array, "B T"]
    valid: Bool[Array, "B T"]


def micro_batches(rows: Sequence[tuple[np.ndarray, np.ndarray]], size: int) -> Iterator[Batch]:
    """A batch in parts of ``size`` rows. Traces of similar length share a part, and parts have few different shapes.

    Args:
        rows: (hidden [n, D], target [n]) of each trace.
        size: rows of a part; the last part is filled up with rows of padding.
    """
    rows = sorted(rows, key=lambda row: len(row[1]))
    for start in range(0, len(rows), size):
        group = rows[start : start + size]
        longest = _padded(max(len(target) for _, target in group))
        d_model, dtype = group[0][0].shape[1], group[0][0].dtype
        hidden = np.zeros((size, longest, d_model), dtype)
        target, valid = np.zeros((size, longest), np.float32), np.zeros((size, longest), bool)
        for row, (h, t) in enumerate(group):
            hidden[row, : len(t)], target[row, : len(t)], valid[row, : len(t)] = h, t, True
        yield Batch(*(jnp.asarray(x) for x in (hidden, target, valid)))


def _padded(length: int) -> int:
    """The length that rows are padded to: fewer than 32 tokens more, or at most an eighth if that is more."""
    grain = max(32, 1 << max(0, length.bit_length() - 4))
    return -(-length // grain) * grain


def data_sharding(rows: int) -> jax.sharding.NamedSharding:
    """How a batch of ``rows`` rows lies on this process's devices: on as many of them as can share it evenly."""
    devices = jax.local_devices()
    n = next(n for n in range(len(devices), 0, -1) if rows % n == 0)
    mesh = jax.sharding.Mesh(np.array(devices[:n]), ("data",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))


@functools.partial(jax.jit, static_argnums=0)
def loss_and_gradients(
    recipe: Recipe, predictor: Predictor, batch: Batch, key: jax.Array
) -> tuple[Float[Array, ""], Predictor]:
    """The loss, summed over the batch's tokens, and its gradients.

    Args:
        recipe: says which loss.
        predictor: the weights.
        batch: the tokens.
        key: random key of the pairwise loss; the squared error doesn't use it.
    """

    def total(predictor: Predictor) -> Float[Array, ""]:
        """The loss."""
        predicted = importance(predictor, batch.hidden)
        if recipe.loss == "ranking":
            return ranking(predicted, batch.target, batch.valid, key)
        return squared_error(predicted, batch.target, batch.valid, recipe.target)

    return jax.value_and_grad(total)(predictor)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=(2, 3))
def update(
    recipe: Recipe, steps: int, predictor: Predictor, moments: Moments, gradients: Predictor, tokens: Float[Array, ""]
) -> tuple[Predictor, Moments]:
    """One step of the optimizer.

    Args:
        recipe: has the optimizer's numbers.
        steps: of the whole training.
        predictor: the weights; donated.
        moments: the optimizer's state; donated.
        gradients: summed over tokens.
        tokens: how many those are.

    Returns:
        The new weights and the optimizer's new state.
    """
    mean = jax.tree.map(lambda g: g / tokens, gradients)
    with jax.numpy_dtype_promotion("standard"):  # optax multiplies its step counter, an integer, by floats
        changes, moments = optimizer(recipe, steps).update(mean, moments, predictor)
    changed: Any = optax.apply_updates(predictor, changes)
    return changed, moments


predict = jax.jit(importance)  # (predictor, hidden [B, T, D]) -> importance [B, T]
