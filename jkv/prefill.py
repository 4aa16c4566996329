"""Prefill: one prompt into one row of the buffer, and its first new token.

Prompts are padded to a few bucket lengths, one compiled program each. A row is filled alone (B = 1), so its numbers
can't depend on the batch it joins.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jkv.axes import Array, Int, UInt32
from jkv.cache import KVCache, LayerKV
from jkv.models.attention import CausalAttention
from jkv.policies.base import NewTokens
from jkv.state import SAMPLING, DecodeState, Program, row_keys
from jkv.step import emit, record


def buckets(budget: int, smallest: int = 32) -> tuple[int, ...]:
    """Prompt lengths that programs are compiled for: powers of two from ``smallest``, and the budget itself."""
    sizes = []
    size = smallest
    while size < budget:
        sizes.append(size)
        size *= 2
    return (*sizes, budget)


@dataclasses.dataclass(frozen=True)
class PrefillAttention:
    """Causal attention over the prompt; ``kv`` out also carries the queries."""

    def __call__(self, q, k, v, kv):
        out, _ = CausalAttention()(q, k, v, kv)
        return out, (q, k, v)


def prefill(
    program: Program,
    weights: nnx.State,
    state: DecodeState,
    row: Int[Array, ""],
    tokens: Int[Array, " T"],
    length: Int[Array, ""],
    limit: Int[Array, ""],
    key: UInt32[Array, " 2"],
) -> tuple[DecodeState, Int[Array, ""]]:
    """Fill ``row`` with a prompt of ``length`` tokens (padded to T) and draw its first new token.

    Nothing of the row's former request survives: policy state, books and key are new.
    """
    model = nnx.merge(program.graph, weights)
    padded = tokens.shape[0]
    positions = jnp.arange(padded)[None]
    hidden, per_layer = model(tokens[None], positions, PrefillAttention())
    last = jax.lax.dynamic_slice_in_dim(hidden, length - 1, 1, axis=1)
    logits = model.logits(last)[:, 0]

    budget = state.cache.budget
    fresh = _fresh_row(program, state, length, limit, key)
    slot = jnp.broadcast_to(positions[:, None, None], (*fresh.cache.positions.shape[:3], padded))
    needs = program.policy.needs
    new = NewTokens(
        position=positions,
        slot=slot,
        valid=positions < length,
        tokens=tokens[None] if needs.tokens else None,
        hidden=hidden if needs.hidden else None,
        attention=tuple(_prompt_attention(q, k, budget) for q, k, _ in per_layer) if needs.attention else None,
    )
    layers = tuple(
        _insert_prompt(layer, row, k, v, q, length)
        for layer, (q, k, v) in zip(state.cache.layers, per_layer, strict=True)
    )
    # The books of one fresh row are made at B = 1, then written over the batch's row; the buffers were written above.
    fresh = record(fresh, (), length[None], new, program)
    drawn = program.sampler(logits, row_keys(key[None], SAMPLING, fresh.position + 1))
    fresh, first = emit(fresh, drawn, program)

    books = dataclasses.replace(state, cache=dataclasses.replace(state.cache, layers=()))
    put = lambda leaf, value: jax.lax.dynamic_update_slice_in_dim(leaf, value.astype(leaf.dtype), row, axis=0)
    books = jax.tree.map(put, books, fresh)
    return dataclasses.replace(books, cache=dataclasses.replace(books.cache, layers=layers)), first[0]


def _fresh_row(program: Program, state: DecodeState, length, limit, key) -> DecodeState:
    shape = program.shape(1)
    zero = jnp.zeros((1,), jnp.int32)
    cache = KVCache(
        layers=(),
        positions=jnp.full((1, *state.cache.positions.shape[1:]), -1, jnp.int32),
        length=zero,
    )
    return DecodeState(
        cache=cache,
        policy=program.policy.init(shape),
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
    )


def _insert_prompt(layer: LayerKV, row, k, v, q, length) -> LayerKV:
    """Keys and values [1, T, K, H] into the row's first T slots; what padding leaves behind ``length`` is dead."""

    def put(slots: jax.Array, values: jax.Array) -> jax.Array:
        values = jnp.swapaxes(values, 1, 2).astype(slots.dtype)
        start: Any = (row, jnp.int32(0), jnp.int32(0), jnp.int32(0))
        return jax.lax.dynamic_update_slice(slots, values, start)

    queries = layer.queries
    if queries is not None:
        n = queries.shape[1]
        # Ring place i holds the newest position p < length with p mod n == i.
        newest = length - 1
        position = newest - (newest - jnp.arange(n)) % n
        recent = q[0][jnp.clip(position, 0)] * (position >= 0)[:, None, None].astype(q.dtype)
        queries = jax.lax.dynamic_update_slice_in_dim(queries, recent[None].astype(queries.dtype), row, axis=0)
    return LayerKV(put(layer.k, k), put(layer.v, v), queries)


def _prompt_attention(q: jax.Array, k: jax.Array, slots: int) -> jax.Array:
    """Causal attention weights [1, N, T, S] of a prompt's queries, zero beyond the prompt's bucket."""
    _, length, n, h = q.shape
    grouped = q.reshape(1, length, k.shape[2], n // k.shape[2], h).astype(jnp.float32)
    logits = jnp.einsum("BTKGH,BSKH->BKGTS", grouped, k.astype(jnp.float32)) * h**-0.5
    causal = jnp.tril(jnp.ones((length, length), jnp.bool_))
    weights = jax.nn.softmax(jnp.where(causal[None, None, None], logits, -jnp.inf), axis=-1)
    return jnp.pad(weights.reshape(1, n, length, length), ((0, 0), (0, 0), (0, 0), (0, slots - length)))
