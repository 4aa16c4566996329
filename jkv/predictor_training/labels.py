"""Labels: the attention that each token of a trace receives from later ones.

The model reads a trace in one pass, as it reads a prompt. Attention weights exist for one block of queries at a time,
so memory grows with tokens x block and not with the square of the tokens. Two labels come from the same pass:

    answer   the mean of the attention weights over layers, query heads and the queries after </think> (DynTS,
             arXiv:2601.18383). A token's attention to itself counts as 0.
    future   the sum of the attention weights over all queries of the completion that come more than ``horizon`` tokens
             later, and their mean over layers and query heads: what a token is worth once it is no longer among the
             newest ``horizon`` (after KVpop, arXiv:2607.05061)
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
from jkv.predictor_training.traces import Trace
from jkv.pytree import pytree

BLOCK = 128  # queries whose attention weights exist at a time
LABELS = ("answer", "future")


@pytree
class Labels:
    """Labels and hidden states of every token of padded traces. What stands in the padding means nothing.

    Attributes:
        answer: label answer.
        future: label future.
        hidden: hidden states, in the model's dtype.
    """

    answer: Float[Array, "B T"]
    future: Float[Array, "B T"]
    hidden: Float[Array, "B T D"]


class TraceLabels(NamedTuple):
    """Labels and hidden states of one trace, on the host: [T], [T] and [T, D] without padding."""

    answer: np.ndarray
    future: np.ndarray
    hidden: np.ndarray


@dataclasses.dataclass(frozen=True)
class BlockwiseAttention:
    """Causal attention in blocks of queries, which adds up the attention that each key receives.

    Attributes:
        answering: the queries that count for label answer.
        completing: the queries that count for label future.
        horizon: for label future, a query counts for keys more than this many tokens before it.
        block: queries at a time, a divisor of T.
        keep_inputs: whether to return the layer's input.
    """

    answering: Bool[Array, "B T"]
    completing: Bool[Array, "B T"]
    horizon: int
    block: int
    keep_inputs: bool = False

    def __call__(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B T K H"],
        v: Float[Array, "B T K H"],
        kv: None,
        x: Float[Array, "B T D"],
        /,
    ) -> tuple[
        Float[Array, "B T N H"], None, tuple[Float[Array, "B T"], Float[Array, "B T"], Float[Array, "B T D"] | None]
    ]:
        """Attend, as `jkv.models.attention.Attend` says.

        Args:
            q, k, v: the layer's queries, keys and values.
            kv: the layer has no buffer.
            x: the layer's input.

        Returns:
            The attention's output; no buffer; and the sums for labels answer and future over this layer's queries,
            mean over its heads, with the input if it is kept.
        """
        run = functools.partial(self._on_shard, q.shape[2])
        heads = ("BTNH", "BTKH", "BTKH")
        shards = per_shard(run, (*heads, "BT", "BT"), ("BTNH", "BT", "BT"))
        out, answer, future = shards(q, k, v, self.answering, self.completing)
        return out, kv, (answer, future, x if self.keep_inputs else None)

    def _on_shard(
        self,
        all_heads: int,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B T K H"],
        v: Float[Array, "B T K H"],
        answering: Bool[Array, "B T"],
        completing: Bool[Array, "B T"],
    ) -> tuple[Float[Array, "B T N H"], Float[Array, "B T"], Float[Array, "B T"]]:
        """Output of this device's heads, and the two sums over the heads of all devices.

        all_heads: query heads of the model; on a mesh q has this device's share of them.
        """
        rows, length, n, h = q.shape
        heads = k.shape[2]
        key_position = jnp.arange(length)

        def one_block(carry: tuple[jax.Array, ...], start: jax.Array) -> tuple[tuple[jax.Array, ...], None]:
            """Attention of the block of queries from ``start``. carry: both sums, and q turning into the output."""
            answer, future, mixed = carry
            cut = lambda y: jax.lax.dynamic_slice_in_dim(y, start, self.block, axis=1)
            queries = jnp.moveaxis(cut(mixed).reshape(rows, self.block, heads, n // heads, h), 2, 0)
            later = (start + jnp.arange(self.block))[:, None] - key_position[None]  # [T, S]: tokens from key to query

            def one_head(
                sums: tuple[jax.Array, jax.Array], at: tuple[jax.Array, jax.Array]
            ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
                """The sums after one KV head, and its output [B, T, G, H]. at: its number, and its queries."""
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

        # The compiler reserves memory for the body of each layer's loop separately, so the body takes one KV head at a
        # time. The output is written over the queries: a buffer of zeros for it would depend on nothing, and the TPU
        # compiler makes such buffers of all layers at once.
        zeros = jnp.zeros((rows, length), jnp.float32)
        starts = jnp.arange(0, length, self.block)
        (answer, future, out), _ = jax.lax.scan(one_block, (zeros, zeros, q), starts)
        return out, *over_heads((answer, future))


def _received(
    weights: Float[Array, "B G T S"], counts: Bool[Array, "B T"], pairs: Bool[Array, "T S"]
) -> Float[Array, "B S"]:
    """The attention that each key receives from one KV head's group of query heads, summed over them and the queries.

    counts: which queries count.  pairs: which pairs of query and key do.
    """
    wanted = counts[:, :, None] & pairs[None]
    return jnp.sum(jnp.where(wanted[:, None], weights, 0.0), axis=(1, 2))


def label(
    graph: nnx.GraphDef,
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
    """Labels and hidden states of padded traces.

    Args:
        graph: the model's, as ``nnx.split`` gives it.
        weights: the model's.
        tokens: token ids, padded at the end; T is a multiple of ``block``.
        think_end: position of </think>.
        prompt_length: tokens of the prompt.
        length: tokens of the trace, without the padding.
        horizon: tokens after which attention counts for label future.
        layer: whose attention's input is the hidden state; None for the final norm's output.
        block: queries whose attention weights exist at a time.
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
    """The length that a trace is padded to: a multiple of `BLOCK`, at most about an eighth longer than the trace.

    Few lengths come out, so that few programs are compiled.
    """
    grain = max(BLOCK, 1 << max(0, length.bit_length() - 4))
    return -(-length // grain) * grain


def _within(mesh: jax.sharding.Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, called with ``mesh`` as JAX's current mesh, where ops look for it."""

    def call(*arguments: Any) -> Any:
        """The function's result."""
        with jax.set_mesh(mesh):
            return function(*arguments)

    return call


class Labeller:
    """Labels several traces at a time, one on each device or, with a mesh, on each place of its `data` axis.

    Args:
        model: whose attention and hidden states are wanted.
        horizon: tokens after which attention counts for label future.
        layer: whose attention's input is the hidden state; None for the final norm's output.
        mesh: with axes `data` and `model` (`jkv.distributed.mesh`). Without one, every device of this process gets a
            copy of the weights.
    """

    def __init__(
        self, model: Decoder, *, horizon: int, layer: int | None, mesh: jax.sharding.Mesh | None = None
    ) -> None:
        self.mesh = mesh or jax.sharding.Mesh(np.array(jax.local_devices()), (DATA,))
        graph, weights = nnx.split(model)
        self.rows = jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec(DATA))
        places = everywhere(weights, self.mesh) if mesh is None else weight_shardings(weights, mesh)
        self.weights = jax.device_put(weights, places)
        program = jax.jit(functools.partial(label, graph, horizon=horizon, layer=layer))
        self.program = program if mesh is None else _within(mesh, program)

    @property
    def at_once(self) -> int:
        """How many traces one call takes at most."""
        return self.mesh.shape[DATA]

    def __call__(self, traces: list[Trace]) -> list[TraceLabels]:
        """Labels and hidden states of up to ``at_once`` traces. A program is compiled for each padded length."""
        padded = padded_length(max(len(trace.tokens) for trace in traces))
        rows = traces + traces[:1] * (self.at_once - len(traces))
        tokens = np.zeros((len(rows), padded), np.int32)
        for row, trace in enumerate(rows):
            tokens[row, : len(trace.tokens)] = trace.tokens
        metadata = [
            np.array([getattr(trace, name) for trace in rows], np.int32)
            for name in ("think_end", "prompt_length", "length")
        ]
        put = lambda x: jax.device_put(x, self.rows)
        found = jax.device_get(self.program(self.weights, *map(put, (tokens, *metadata))))
        return [
            TraceLabels(*(np.asarray(x[row, : trace.length]) for x in (found.answer, found.future, found.hidden)))
            for row, trace in enumerate(traces)
        ]
