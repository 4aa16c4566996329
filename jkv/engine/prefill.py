"""Prefill: one prompt into one row of the buffer, and its first new token.

Prompts are padded to a few bucket lengths, one compiled program each. A row is filled alone (B = 1), so its numbers
can't depend on the batch it joins. Prompts longer than the budget, and policies that want to know every query's
attention, go through ``jkv.engine.chunked_prefill`` instead.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jkv.axes import Array, Bool, Int, UInt32
from jkv.engine.cache import KVCache, LayerKV
from jkv.engine.row_shards import own_row, write_row
from jkv.engine.state import SAMPLING, DecodeSetup, DecodeState, empty_scores, row_keys
from jkv.engine.step import emit, record
from jkv.ops.buffer import Buffer, like
from jkv.ops.prefill_attention import prefill_attention
from jkv.policies.base import NewTokens
from jkv.pytree import pytree, static


def buckets(budget: int, smallest: int = 32) -> tuple[int, ...]:
    """Prompt lengths that programs are compiled for: powers of two from ``smallest``, and the budget itself."""
    sizes = []
    size = smallest
    while size < budget:
        sizes.append(size)
        size *= 2
    return (*sizes, budget)


@pytree
class PrefillAttention:
    """Causal attention over the prompt. It meets no buffer; what it saw is (q, k, v, x)."""

    implementation: str = static()

    def __call__(self, q, k, v, kv, x):
        return prefill_attention(q, k, v, implementation=self.implementation), kv, (q, k, v, x)


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
    """Fill ``row`` with a prompt of ``length`` tokens (padded to T) and draw its first new token.

    Nothing of the row's former request survives: policy state, books and key are new.
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
    # The books of one fresh row are made at B = 1, then written over the batch's row; the buffers were written above.
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
    """The batch with these layers, and with one row's metadata [B = 1] in place of its own.

    owned: whether this shard has the row (`jkv.engine.row_shards`); one that hasn't writes nothing.
    """
    put = lambda leaf, value: write_row(leaf, value.astype(leaf.dtype), row, owned)
    batch = dataclasses.replace(state, cache=dataclasses.replace(state.cache, layers=()))
    batch = jax.tree.map(put, batch, metadata)
    return dataclasses.replace(batch, cache=dataclasses.replace(batch.cache, layers=layers))


def fresh_row(setup: DecodeSetup, state: DecodeState, length, limit, key) -> DecodeState:
    """Books [B = 1] of a row that starts anew, for a prompt of ``length`` tokens about to be put in whole."""
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
        position=length[None] - 1,  # of the prompt's last token; emit moves on to the first new one
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


def _insert_prompt(layer: LayerKV, row, k, v, q, length, owned) -> LayerKV:
    """Keys and values [1, T, K, H] into the row's first T slots; what padding leaves behind ``length`` is dead."""

    def put(slots: Buffer, values: jax.Array) -> Buffer:
        new = like(slots, jnp.swapaxes(values, 1, 2))
        return jax.tree.map(lambda leaf, value: write_row(leaf, value, row, owned), slots, new)

    queries = layer.queries
    if queries is not None:
        n = queries.shape[1]
        # Ring place i holds the newest position p < length with p mod n == i.
        newest = length - 1
        position = newest - (newest - jnp.arange(n)) % n
        recent = q[0][jnp.clip(position, 0)] * (position >= 0)[:, None, None].astype(q.dtype)
        queries = write_row(queries, recent[None].astype(queries.dtype), row, owned)
    return LayerKV(put(layer.k, k), put(layer.v, v), queries)
