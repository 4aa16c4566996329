"""Prefill: read one prompt into one row of the buffer, and draw its first new token.

Prompts are padded to one of a few lengths (buckets), each of which has a program. The model reads the prompt alone
(B = 1), so its numbers can't depend on the batch that it joins. Prompts longer than the budget, and all prompts where
the policy asks for attention weights, go through `jkv.engine.chunked_prefill` instead
(`jkv.engine.programs.reads_in_chunks` decides).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jkv.axes import Array, Bool, Float, Int, UInt32
from jkv.engine.cache import KVCache, LayerKV
from jkv.engine.row_shards import own_row, write_row
from jkv.engine.state import SAMPLING, DecodeSetup, DecodeState, empty_scores, row_keys
from jkv.engine.step import emit, record
from jkv.ops.buffer import Buffer, like
from jkv.ops.prefill_attention import prefill_attention
from jkv.policies.base import NewTokens
from jkv.pytree import pytree, static


def buckets(budget: int, smallest: int = 32) -> tuple[int, ...]:
    """Lengths that prompts are padded to: powers of two from ``smallest`` that are below the budget, and the budget."""
    sizes = []
    size = smallest
    while size < budget:
        sizes.append(size)
        size *= 2
    return (*sizes, budget)


# What prefill needs to know of one layer: queries, keys, values, and what they were projected from.
_Seen = tuple[Float[Array, "1 T N H"], Float[Array, "1 T K H"], Float[Array, "1 T K H"], Float[Array, "1 T D"]]


@pytree
class PrefillAttention:
    """Causal attention over the prompt (`jkv.models.attention.Attend`). It neither reads nor writes a buffer; keys and
    values are handed back, and put into the row's slots after the model has run.

    Attributes:
        implementation: which implementation of the attention runs.
    """

    implementation: str = static()

    def __call__(
        self,
        q: Float[Array, "1 T N H"],
        k: Float[Array, "1 T K H"],
        v: Float[Array, "1 T K H"],
        no_buffer: None,
        x: Float[Array, "1 T D"],
    ) -> tuple[Float[Array, "1 T N H"], None, _Seen]:
        return prefill_attention(q, k, v, implementation=self.implementation), no_buffer, (q, k, v, x)


def prefill(
    setup: DecodeSetup,
    weights: nnx.State,
    state: DecodeState,
    parameters: Any,
    row: Int[Array, ""],
    tokens: Int[Array, " T"],
    length: Int[Array, ""],
    limit: Int[Array, ""],
    key: UInt32[Array, " 2"],
) -> tuple[DecodeState, Int[Array, ""]]:
    """Fill ``row`` with a prompt and draw its first new token.

    Nothing of the row's former request is left: all its metadata is new, and its old slots are overwritten or dead.

    Args:
        setup: what the program is compiled for.
        weights: the model's.
        state: the batch; the compiled program overwrites its buffers (they are donated).
        parameters: the policy's.
        row: index in the whole batch.
        tokens: the prompt, padded at its end.
        length: tokens of the prompt without padding, at most S.
        limit: new tokens at most.
        key: raw random key of the request (`jkv.engine.state.request_key`).

    Returns:
        The state, and the first new token.
    """
    model = nnx.merge(setup.graph, weights)
    row, owned = own_row(row, state.active.shape[0])
    padded = tokens.shape[0]
    positions = jnp.arange(padded)[None]
    hidden, per_layer = model(tokens[None], positions, PrefillAttention(setup.implementation))
    last = jax.lax.dynamic_slice_in_dim(hidden, length - 1, 1, axis=1)
    logits = model.logits(last)[:, 0]

    fresh = fresh_row(setup, state, length, limit, key)
    slot = jnp.broadcast_to(positions[:, None, None], (*fresh.cache.positions.shape[:3], padded))
    needs = setup.policy.needs
    new = NewTokens(
        position=positions,
        slot=slot,
        valid=positions < length,
        occupied=positions + 1,
        prompt_length=length[None],
        model=setup.config,
        parameters=parameters,
        tokens=tokens[None] if needs.tokens else None,
        hidden=hidden if needs.hidden else None,
        inputs=tuple(x for _, (*_, x) in per_layer) if needs.inputs else None,
    )
    layers = tuple(
        _insert_prompt(layer, row, k, v, q, length, owned)
        for layer, (_, (q, k, v, _)) in zip(state.cache.layers, per_layer, strict=True)
    )
    # The new row's metadata is made with B = 1, then written over the batch's row. The buffers are written already.
    fresh = record(fresh, (), length[None], new, setup)
    drawn = setup.sampler(logits, row_keys(key[None], SAMPLING, fresh.position + 1))
    fresh, first = emit(fresh, drawn, setup)
    return put_row(state, fresh, layers, row, owned), first[0]


def put_row(
    state: DecodeState,
    metadata: DecodeState,
    layers: tuple[LayerKV, ...],
    row: Int[Array, ""],
    owned: Bool[Array, ""] | None = None,
) -> DecodeState:
    """The batch with other buffers, and with the metadata of one row replaced.

    Args:
        state: the batch.
        metadata: the row's [B = 1].
        layers: the buffers, of all rows.
        row: index among this shard's rows.
        owned: whether this shard owns the row (`jkv.engine.row_shards.own_row`); if not, metadata stays as it is.
    """
    put = lambda leaf, value: write_row(leaf, value.astype(leaf.dtype), row, owned)
    batch = dataclasses.replace(state, cache=dataclasses.replace(state.cache, layers=()))
    batch = jax.tree.map(put, batch, metadata)
    return dataclasses.replace(batch, cache=dataclasses.replace(batch.cache, layers=layers))


def fresh_row(
    setup: DecodeSetup,
    state: DecodeState,
    length: Int[Array, ""],
    limit: Int[Array, ""],
    key: UInt32[Array, " 2"],
) -> DecodeState:
    """Metadata [B = 1] of a row that begins a request: nothing is in its buffer yet.

    ``position`` is that of the prompt's last token, as if the prompt had been put in.

    Args:
        setup: what the program is compiled for.
        state: the batch, for shapes.
        length: tokens of the prompt.
        limit: new tokens at most.
        key: raw random key of the request.
    """
    shape = setup.shape(1)
    zero = jnp.zeros((1,), jnp.int32)
    cache = KVCache(
        layers=(),
        positions=jnp.full((1, *state.cache.positions.shape[1:]), -1, jnp.int32),
        length=zero,
    )
    return DecodeState(
        cache=cache,
        policy=setup.policy.init(shape),
        slot_tokens=None if state.slot_tokens is None else shape.per_slot(jnp.int32),
        token=zero,
        position=length[None] - 1,  # of the prompt's last token; ``emit`` adds one for the first new token
        prompt_length=length[None],
        generated=zero,
        limit=limit[None],
        active=jnp.ones((1,), jnp.bool_),
        key=key[None],
        evictions=zero,
        peak=zero,
        slot_steps=zero,
        scored=None if state.scored is None else empty_scores(shape),
    )


def _insert_prompt(
    layer: LayerKV,
    row: Int[Array, ""],
    k: Float[Array, "1 T K H"],
    v: Float[Array, "1 T K H"],
    q: Float[Array, "1 T N H"],
    length: Int[Array, ""],
    owned: Bool[Array, ""] | None,
) -> LayerKV:
    """Put the prompt's keys and values into the row's first T slots, and its last queries into the ring. The slots that
    padding fills, from ``length`` on, are dead."""

    def put(slots: Buffer, values: Float[Array, "1 T K H"]) -> Buffer:
        """Keys or values, in the buffer's form."""
        new = like(slots, jnp.swapaxes(values, 1, 2))
        return jax.tree.map(lambda leaf, value: write_row(leaf, value, row, owned), slots, new)

    queries = layer.queries
    if queries is not None:
        n = queries.shape[1]
        # Place i of the ring is for the newest position p < length with p mod n == i; zeros if there is none.
        newest = length - 1
        position = newest - (newest - jnp.arange(n)) % n
        recent = q[0][jnp.clip(position, 0)] * (position >= 0)[:, None, None].astype(q.dtype)
        queries = write_row(queries, recent[None].astype(queries.dtype), row, owned)
    return LayerKV(put(layer.k, k), put(layer.v, v), queries)
