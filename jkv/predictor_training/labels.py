"""Labels: the attention that each token receives from later ones, over the whole of a known text.

A trace is read once, all of it given. Attention weights exist for one block of queries at a time, so memory grows with
(tokens x block), never with tokens squared. Two labels come from the same pass:

    answer   mean over layers, query heads and the queries after </think> (DynTS, arXiv:2601.18383: the diagonal of the
             attention matrix is zeroed, so a token is not its own query)
    future   sum over all completion queries more than ``horizon`` tokens later, mean over layers and query heads: what
             a token is still worth once it has left the newest ``horizon`` (after KVpop, arXiv:2607.05061)
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jkv.axes import Array, Bool, Float, Int
from jkv.distributed.mesh import everywhere
from jkv.distributed.weights import weight_shardings
from jkv.models.decoder import Decoder
from jkv.ops.sharding import DATA, over_heads, per_shard
from jkv.pytree import pytree

BLOCK = 128
LABELS = ("answer", "future")


@pytree
class Labels:
    """Of every token of every row; what is behind a row's end is meaningless. hidden: in the model's dtype."""

    answer: Float[Array, "B T"]
    future: Float[Array, "B T"]
    hidden: Float[Array, "B T D"]


class TraceLabels(NamedTuple):
    """The same of one trace, on the host: [T], [T] and [T, D]."""

    answer: np.ndarray
    future: np.ndarray
    hidden: np.ndarray


@dataclasses.dataclass(frozen=True)
class BlockwiseAttention:
    """Causal attention in blocks of queries; what it saw is (answer sums [B, T], future sums [B, T], inputs).

    answering, completing: which queries count for either label, bool [B, T].  horizon: as above.  block: queries at a
    time, a divisor of T.  keep_inputs: whether what entered the attention is handed out.
    """

    answering: Bool[Array, "B T"]
    completing: Bool[Array, "B T"]
    horizon: int
    block: int
    keep_inputs: bool = False

    def __call__(self, q, k, v, kv, x):
        run = functools.partial(self._on_shard, q.shape[2])
        heads = ("BTNH", "BTKH", "BTKH")
        shards = per_shard(run, (*heads, "BT", "BT"), ("BTNH", "BT", "BT"))
        out, answer, future = shards(q, k, v, self.answering, self.completing)
        return out, kv, (answer, future, x if self.keep_inputs else None)

    def _on_shard(self, all_heads: int, q, k, v, answering, completing):
        """Of the heads that are here, on a mesh a share of ``all_heads``; sums are those of all of them."""
        rows, length, n, h = q.shape
        heads = k.shape[2]
        key_position = jnp.arange(length)

        def one_block(carry, start):
            answer, future, mixed = carry
            cut = lambda y: jax.lax.dynamic_slice_in_dim(y, start, self.block, axis=1)
            queries = jnp.moveaxis(cut(mixed).reshape(rows, self.block, heads, n // heads, h), 2, 0)
            later = (start + jnp.arange(self.block))[:, None] - key_position[None]  # [T, S]: how much later the query

            def one_head(sums, at):
                head, query = at
                key, value = (jax.lax.dynamic_index_in_dim(x, head, axis=2, keepdims=False) for x in (k, v))
                scores = jnp.einsum("BTGH,BSH->BGTS", query, key, preferred_element_type=jnp.float32) * h**-0.5
                weights = jax.nn.softmax(jnp.where((later >= 0)[None, None], scores, -jnp.inf), axis=-1)
                answer, future = sums
                answer += _received(weights, cut(answering), later > 0) / all_heads
                future += _received(weights, cut(completing), later > self.horizon) / all_heads
                return (answer, future), jnp.einsum("BGTS,BSH->BTGH", weights.astype(v.dtype), value)

            (answer, future), out = jax.lax.scan(one_head, (answer, future), (jnp.arange(heads), queries))
            out = jnp.moveaxis(out, 0, 2).reshape(rows, self.block, n, h)
            return (answer, future, jax.lax.dynamic_update_slice_in_dim(mixed, out, start, axis=1)), None

        # What a loop's body needs is set aside for each layer's loop apart: one KV head at a time keeps it small. A
        # block's output takes the place of its queries: a buffer of zeros for it depends on nothing, and the TPU
        # compiler would make those of all layers at once.
        zeros = jnp.zeros((rows, length), jnp.float32)
        starts = jnp.arange(0, length, self.block)
        (answer, future, out), _ = jax.lax.scan(one_block, (zeros, zeros, q), starts)
        return out, *over_heads((answer, future))


def _received(
    weights: Float[Array, "B G T S"], counts: Bool[Array, "B T"], pairs: Bool[Array, "T S"]
) -> Float[Array, "B S"]:
    """Attention that keys get from the queries that count, summed over a group's query heads."""
    wanted = counts[:, :, None] & pairs[None]
    return jnp.sum(jnp.where(wanted[:, None], weights, 0.0), axis=(1, 2))


def label(
    graph: Any,
    weights: nnx.State,
    tokens: Int[Array, "B T"],
    think_end: Int[Array, " B"],
    prompt_length: Int[Array, " B"],
    length: Int[Array, " B"],
    *,
    horizon: int,
    layer: int | None = None,
    block: int = BLOCK,
) -> Labels:
    """Labels and hidden states of padded traces, T a multiple of ``block``.

    think_end: position of </think>.  length: of each trace, padding left out.  layer: whose attention input is the
    hidden state; None for the final norm's output.
    """
    model: Decoder = nnx.merge(graph, weights)
    position = jnp.arange(tokens.shape[1])[None]
    inside = position < length[:, None]
    answering = (position > think_end[:, None]) & inside
    completing = (position >= prompt_length[:, None]) & inside
    attend = BlockwiseAttention(answering, completing, horizon, block)
    attends = [attend] * model.config.n_layers
    if layer is not None:
        attends[layer] = dataclasses.replace(attend, keep_inputs=True)
    hidden, per_layer = model(tokens, jnp.broadcast_to(position, tokens.shape), attends)
    answers, futures, inputs = zip(*(seen for _, seen in per_layer), strict=True)
    queries = jnp.maximum(jnp.sum(answering, axis=1, keepdims=True), 1).astype(jnp.float32)
    return Labels(
        answer=functools.reduce(jnp.add, answers) / (len(answers) * queries),
        future=functools.reduce(jnp.add, futures) / len(futures),
        hidden=hidden if layer is None else inputs[layer],
    )


def padded_length(length: int) -> int:
    """The length a trace is padded to: few different ones, at most an eighth of it wasted, multiples of BLOCK."""
    grain = max(BLOCK, 1 << max(0, length.bit_length() - 4))
    return -(-length // grain) * grain


def _within(mesh: jax.sharding.Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` called where code that looks for a mesh finds this one."""

    def call(*arguments: Any) -> Any:
        with jax.set_mesh(mesh):
            return function(*arguments)

    return call


class Labeller:
    """Labels of traces, one row a device, or one a place on the `data` axis of ``mesh``.

    mesh: axes `data` and `model`, as `jkv.distributed.mesh` has them; None: the weights are copied to every device of
    this process. Programs are compiled for few padded lengths.
    """

    def __init__(self, model: Decoder, *, horizon: int, layer: int | None, mesh: jax.sharding.Mesh | None = None):
        self.mesh = mesh or jax.sharding.Mesh(np.array(jax.local_devices()), (DATA,))
        graph, weights = nnx.split(model)
        self.rows = jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec(DATA))
        places = everywhere(weights, self.mesh) if mesh is None else weight_shardings(weights, mesh)
        self.weights = jax.device_put(weights, places)
        program = jax.jit(functools.partial(label, graph, horizon=horizon, layer=layer))
        self.program = program if mesh is None else _within(mesh, program)

    @property
    def at_once(self) -> int:
        """Traces that one call takes at most."""
        return self.mesh.shape[DATA]

    def __call__(self, traces: list[Any]) -> list[TraceLabels]:
        """Labels of up to ``at_once`` traces, on the host, cut to each trace's length."""
        padded = padded_length(max(len(trace.tokens) for trace in traces))
        rows = traces + traces[:1] * (self.at_once - len(traces))
        tokens = np.zeros((len(rows), padded), np.int32)
        for row, trace in enumerate(rows):
            tokens[row, : len(trace.tokens)] = trace.tokens
        books = [
            np.array([getattr(trace, name) for trace in rows], np.int32)
            for name in ("think_end", "prompt_length", "length")
        ]
        put = lambda x: jax.device_put(x, self.rows)
        found = jax.device_get(self.program(self.weights, *map(put, (tokens, *books))))
        return [
            TraceLabels(*(np.asarray(x[row, : trace.length]) for x in (found.answer, found.future, found.hidden)))
            for row, trace in enumerate(traces)
        ]
