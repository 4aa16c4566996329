"""Curriculum, optimizer and training step of the demo checkpoints."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jkv.demo.batches import Batch, Layout, RowsAttention
from jkv.models import Decoder


@dataclasses.dataclass(frozen=True)
class Curriculum:
    """Stages by step: {2, 3} variables without filler, {2..6} without filler, {2..6} with filler."""

    short: int
    plain: int
    full: int
    tokens: int

    @property
    def steps(self) -> int:
        return self.short + self.plain + self.full

    def layout(self, step: int) -> Layout:
        """The layout of the batch of a step, counted from 0."""
        sizes = (2, 3) if step < self.short else (2, 3, 4, 5, 6)
        return Layout.of_tokens(self.tokens, sizes, filler=step >= self.short + self.plain)


@functools.cache  # one object a schedule: the compiled step is looked up by it
def optimizer(steps: int, peak: float) -> optax.GradientTransformation:
    """AdamW on a trapezoid: warm-up over 60 steps, constant to half of ``steps``, cosine to 1 % of the peak."""
    warm, half = min(60, max(1, steps // 4)), max(1, steps // 2)
    rate = optax.join_schedules(
        [
            optax.linear_schedule(peak / warm, peak, warm),
            optax.constant_schedule(peak),
            optax.cosine_decay_schedule(peak, max(1, steps - half), alpha=0.01),
        ],
        [warm, max(warm, half)],
    )
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(rate, b1=0.9, b2=0.98, weight_decay=0.05, mask=is_matrix),
    )


def is_matrix(params):
    """Which leaves weight decay applies to. Told by name and not by rank: a bias of a QKV projection is [heads, H]."""

    def matrix(path, _):
        return any(name in jax.tree_util.keystr(path) for name in ("kernel", "embed", "head"))

    return jax.tree_util.tree_map_with_path(matrix, params)


def cross_entropy(graph, params, batch: Batch, layout: Layout):
    """Weighted mean loss of a batch in nats, and whether each target was the likeliest word, bool [1 M]."""
    model = nnx.merge(graph, params)
    hidden, _ = model(batch.tokens, batch.positions, RowsAttention(layout))
    logits = model.logits(hidden)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
    return jnp.sum(losses * batch.weights) / jnp.sum(batch.weights), jnp.argmax(logits, -1) == batch.targets


@functools.partial(jax.jit, static_argnums=(0, 1, 5), donate_argnums=(2, 3))
def train_step(graph, transform, params, moments, batch: Batch, layout: Layout):
    """One update. Returns the parameters, the optimizer's state, and the loss before the update."""
    (loss, _), grads = jax.value_and_grad(cross_entropy, argnums=1, has_aux=True)(graph, params, batch, layout)
    with jax.numpy_dtype_promotion("standard"):  # optax multiplies its step counter, an integer, by floats
        updates, moments = transform.update(grads, moments, params)
    return optax.apply_updates(params, updates), moments, loss


@functools.partial(jax.jit, static_argnums=(0, 3))
def problems_right(graph, params, batch: Batch, layout: Layout):
    """The fraction of problems of which every word but filler is the likeliest one after the true words before it.

    That is how often greedy decoding of the whole thought would be right, if filler didn't matter.
    """
    _, likeliest = cross_entropy(graph, params, batch, layout)
    passed = (likeliest | (batch.weights < 1))[0]
    rows, start = [], 0
    for length in layout.lengths:
        stop = start + layout.rows * length
        rows.append(jnp.all(passed[start:stop].reshape(layout.rows, length), axis=1))
        start = stop
    return jnp.mean(jnp.concatenate(rows), dtype=jnp.float32)


def start(model: Decoder, transform):
    """A model's graph and parameters, and the optimizer's state."""
    graph, params = nnx.split(model)
    return graph, params, transform.init(params)
