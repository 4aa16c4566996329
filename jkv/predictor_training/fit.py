"""Optimizer, batches and the training step of the importance predictor. The backbone is frozen: it only gave the
hidden states."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jkv.axes import Array, Bool, Float
from jkv.models.predictor import Predictor, importance
from jkv.predictor_training.targets import Target, ranking, squared_error
from jkv.pytree import pytree


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything the weights depend on beside the data. ``batch`` is in traces, ``micro_batch`` of them at a time."""

    loss: str
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
        """Steps of an epoch; the last batch may be smaller."""
        return -(-traces // self.batch)

    def batches(self, traces: Sequence[int], epoch: int) -> list[list[int]]:
        """The traces of each step of an epoch: a permutation of its own."""
        order = np.random.default_rng([self.seed, 0, epoch]).permutation(np.asarray(traces)).tolist()
        return [order[i : i + self.batch] for i in range(0, len(order), self.batch)]


@functools.cache  # one object a schedule: the compiled update is looked up by it
def optimizer(recipe: Recipe, steps: int) -> optax.GradientTransformation:
    """AdamW (0.9, 0.95): linear warm-up over a part of the steps, then a cosine to 0; gradients clipped by norm."""
    warm = max(1, round(recipe.warm_up * steps))
    rate = optax.warmup_cosine_decay_schedule(0.0, recipe.learning_rate, warm, max(steps, warm + 1))
    # The first step of a warm-up from 0 would change nothing: count from the step that is taken.
    later = lambda count: rate(count + 1)
    return optax.chain(
        optax.clip_by_global_norm(recipe.clip),
        optax.adamw(later, b1=0.9, b2=0.95, weight_decay=recipe.weight_decay),
    )


@pytree
class Batch:
    """Some traces' thinking tokens, padded to one length."""

    hidden: Float[Array, "B T D"]
    target: Float[Array, "B T"]
    valid: Bool[Array, "B T"]


def micro_batches(rows: Sequence[tuple[np.ndarray, np.ndarray]], size: int) -> Iterator[Batch]:
    """(hidden [n, D], target [n]) of a batch's traces, ``size`` at a time, in few different shapes. Rows of like length
    go together."""
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
    grain = max(32, 1 << max(0, length.bit_length() - 4))
    return -(-length // grain) * grain


def data_sharding(rows: int) -> jax.sharding.NamedSharding:
    """Rows over as many of this process's devices as divide them."""
    devices = jax.local_devices()
    n = next(n for n in range(len(devices), 0, -1) if rows % n == 0)
    mesh = jax.sharding.Mesh(np.array(devices[:n]), ("data",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))


@functools.partial(jax.jit, static_argnums=0)
def loss_and_gradients(recipe: Recipe, predictor: Predictor, batch: Batch, key: jax.Array) -> tuple[jax.Array, Any]:
    """Summed over the batch's tokens."""

    def total(predictor: Predictor) -> jax.Array:
        predicted = importance(predictor, batch.hidden)
        if recipe.loss == "ranking":
            return ranking(predicted, batch.target, batch.valid, key)
        return squared_error(predicted, batch.target, batch.valid, recipe.target)

    return jax.value_and_grad(total)(predictor)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=(2, 3))
def update(recipe: Recipe, steps: int, predictor: Predictor, moments: Any, gradients: Any, tokens: jax.Array):
    """One optimizer step with gradients summed over ``tokens`` tokens. Returns predictor and moments."""
    mean = jax.tree.map(lambda g: g / tokens, gradients)
    with jax.numpy_dtype_promotion("standard"):  # optax multiplies its step counter, an integer, by floats
        changes, moments = optimizer(recipe, steps).update(mean, moments, predictor)
    return optax.apply_updates(predictor, changes), moments


predict = jax.jit(importance)
