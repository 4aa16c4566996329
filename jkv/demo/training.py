"""Curriculum, optimizer and training step of the demo checkpoints."""

import dataclasses
import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jkv.axes import Array, Bool, Float
from jkv.demo.batches import Batch, Layout, RowsAttention
from jkv.models import Decoder


@dataclasses.dataclass(frozen=True)
class Curriculum:
    """The stages of training.

    Attributes:
        short: steps on problems of 2 or 3 variables without filler.
        plain: steps on problems of 2 to 6 variables without filler.
        full: steps on problems of 2 to 6 variables with filler.
        tokens: of a batch, approximately.
    """

    short: int
    plain: int
    full: int
    tokens: int

    @property
    def steps(self) -> int:
        """Steps of all stages."""
        return self.short + self.plain + self.full

    def layout(self, step: int) -> Layout:
        """The layout of a step's batch. Steps count from 0."""
        sizes = (2, 3) if step < self.short else (2, 3, 4, 5, 6)
        return Layout.of_tokens(self.tokens, sizes, filler=step >= self.short + self.plain)


@functools.cache  # the same object for the same schedule: jax.jit compiles train_step again for a new one
def optimizer(steps: int, peak: float) -> optax.GradientTransformation:
    """AdamW, whose learning rate rises for 60 steps, is constant until half of the steps, and falls to 1 % of the peak.

    Args:
        steps: of the whole run; the warm-up takes at most a quarter of them.
        peak: the highest learning rate.
    """
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


def is_matrix(params: Any) -> Any:
    """For each leaf of a pytree of parameters, whether weight decay applies to it: the same tree with booleans.

    It goes by name and not by rank: the bias of a QKV projection has two axes, [heads, H].
    """
    matrices = ("kernel", "embed", "head")
    return jax.tree_util.tree_map_with_path(
        lambda path, _: any(name in jax.tree_util.keystr(path) for name in matrices), params
    )


def cross_entropy(
    graph: nnx.GraphDef, params: nnx.State, batch: Batch, layout: Layout
) -> tuple[Float[Array, ""], Bool[Array, "1 M"]]:
    """The loss of a batch.

    Args:
        graph: of the model.
        params: its weights.
        batch: M tokens.
        layout: of the batch.

    Returns:
        The weighted mean of the cross-entropy, in nats a token; and whether each target is the model's likeliest token.
    """
    model = nnx.merge(graph, params)
    hidden, _ = model(batch.tokens, batch.positions, RowsAttention(layout))
    logits = model.logits(hidden)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
    return jnp.sum(losses * batch.weights) / jnp.sum(batch.weights), jnp.argmax(logits, -1) == batch.targets


@functools.partial(jax.jit, static_argnums=(0, 1, 5), donate_argnums=(2, 3))
def train_step(
    graph: nnx.GraphDef,
    transform: optax.GradientTransformation,
    params: nnx.State,
    moments: Any,
    batch: Batch,
    layout: Layout,
) -> tuple[nnx.State, Any, Float[Array, ""]]:
    """One update of the weights.

    Args:
        graph: of the model.
        transform: the optimizer.
        params: the weights; their buffers are donated.
        moments: the optimizer's state, a pytree of its choice; its buffers are donated.
        batch: of this step.
        layout: of the batch.

    Returns:
        The new weights, the optimizer's new state, and the loss before the update, in nats a token.
    """
    (loss, _), grads = jax.value_and_grad(cross_entropy, argnums=1, has_aux=True)(graph, params, batch, layout)
    with jax.numpy_dtype_promotion("standard"):  # optax multiplies its step counter, an integer, by floats
        updates, moments = transform.update(grads, moments, params)
    return cast(nnx.State, optax.apply_updates(params, updates)), moments, loss


@functools.partial(jax.jit, static_argnums=(0, 3))
def problems_right(graph: nnx.GraphDef, params: nnx.State, batch: Batch, layout: Layout) -> Float[Array, ""]:
    """The fraction of problems in which every word except filler is the likeliest, given the true words before it.

    Greedy decoding would get this fraction right, up to the effect of different filler.

    Args:
        graph: of the model.
        params: its weights.
        batch: of problems.
        layout: of the batch.
    """
    _, likeliest = cross_entropy(graph, params, batch, layout)
    passed = (likeliest | (batch.weights < 1))[0]
    rows, start = [], 0
    for length in layout.lengths:
        stop = start + layout.rows * length
        rows.append(jnp.all(passed[start:stop].reshape(layout.rows, length), axis=1))
        start = stop
    return jnp.mean(jnp.concatenate(rows), dtype=jnp.float32)


def start(model: Decoder, transform: optax.GradientTransformation) -> tuple[nnx.GraphDef, nnx.State, Any]:
    """A model's graph and weights, and the optimizer's initial state for them."""
    graph, params = nnx.split(model)
    return graph, params, transform.init(params)
