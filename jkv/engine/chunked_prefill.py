"""Chunked prefill: a prompt read in pieces, each attending to the buffer; a full buffer evicts in between.

It gives what decoding would give if the prompt's tokens were drawn one by one: a row that is full evicts before its
next token. It serves prompts longer than the budget, and policies that want every query's attention weights, which
for a whole prompt at once would be T x T. A piece ends where the buffer is full.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jkv.axes import Array, Bool, Float, Int, UInt32
from jkv.engine.cache import LayerKV
from jkv.engine.eviction import evict, slice_row
from jkv.engine.prefill import fresh_row, put_row
from jkv.engine.row_shards import of_owner, own_row
from jkv.engine.state import SAMPLING, DecodeSetup, DecodeState, row_keys
from jkv.engine.step import emit, record
from jkv.ops.buffer import Buffer, by_part, dense, like
from jkv.policies.base import Needs, NewTokens
from jkv.pytree import pytree, static

CHUNK = 64  # tokens a piece at most
_SMALLEST = 8


def piece_length(setup: DecodeSetup) -> int:
    """Tokens a piece holds: once the buffer is full no more than an eviction makes room for."""
    rule = setup.rule
    return min(CHUNK, rule.budget, max(_SMALLEST, rule.budget - rule.retain) if setup.policy.evicts else CHUNK)


@pytree
class ChunkAttention:
    """A piece's way to meet keys: it goes into the row's next slots, and each token attends to what is there then.

    What it saw, for policies that ask for it: (attention weights, inputs). Tokens at or past ``count`` are padding:
    never written, never read.
    """

    row: Int[Array, ""]
    position: Int[Array, " T"]
    length: Int[Array, ""]
    count: Int[Array, ""]
    needs: Needs = static()

    def __call__(self, q, k, v, kv, x):
        layer: LayerKV = kv
        piece, (slots, h) = q.shape[1], layer.k.shape[2:]
        token = jnp.arange(piece)
        k_slots, v_slots = (self._put(buffer, new) for buffer, new in ((layer.k, k), (layer.v, v)))

        cut = lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, self.row, 1)
        row = lambda buffer: dense(jax.tree.map(cut, buffer), jnp.float32)[0]  # [K, S, H]
        seen = jnp.arange(slots)[None, :] <= (self.length + token)[:, None]  # [T, S]
        keys = row(k_slots)
        live = jnp.arange(slots) < self.length + self.count
        values = jnp.where(live[None, :, None], row(v_slots), 0.0)
        grouped = q[0].reshape(piece, keys.shape[0], -1, h).astype(jnp.float32)
        logits = jnp.einsum("TKGH,KSH->KGTS", grouped, keys) * h**-0.5
        weights = jax.nn.softmax(jnp.where(seen[None, None], logits, -jnp.inf), axis=-1)
        out = jnp.einsum("KGTS,KSH->TKGH", weights, values).reshape(q.shape).astype(q.dtype)

        queries = layer.queries
        if queries is not None:
            n = queries.shape[1]
            # Of the piece's tokens only the last n may write: ring places must not be written twice.
            place = jnp.where((token < self.count) & (token >= self.count - n), self.position % n, n)
            queries = queries.at[self.row, place].set(q[0].astype(queries.dtype), mode="drop")
        attention = weights.reshape(1, q.shape[2], piece, slots) if self.needs.attention else None
        return out, LayerKV(k_slots, v_slots, queries), (attention, x if self.needs.inputs else None)

    def _put(self, buffer: Buffer, new: Float[Array, "1 T K H"]) -> Buffer:
        """The piece's first ``count`` tokens in the row's next slots: a slice read, mended and written back. A scatter
        would make the TPU compiler change the layout of the buffer, which copies all of it."""
        piece, zero = new.shape[1], jnp.int32(0)
        start = jnp.minimum(self.length, buffer.shape[2] - piece)
        token = jnp.arange(piece) - (self.length - start)  # which belongs in each slot of the slice
        fresh = (token >= 0) & (token < self.count)

        def put(leaf: jax.Array, tokens: jax.Array, *, axis: int) -> jax.Array:
            corner = [self.row, zero, zero, zero]
            corner[axis] = start
            old = jax.lax.dynamic_slice(leaf, corner, (1, *tokens.shape[1:]))
            moved = jnp.take(tokens, jnp.clip(token, 0, piece - 1), axis=axis, mode="clip")
            here = jax.lax.expand_dims(fresh, [i for i in range(4) if i != axis])
            return jax.lax.dynamic_update_slice(leaf, jnp.where(here, moved, old), corner)

        return by_part(put, buffer, like(buffer, jnp.swapaxes(new, 1, 2)))


def chunked_prefill(
    setup: DecodeSetup,
    weights: nnx.State,
    state: DecodeState,
    parameters: Any,
    row: Int[Array, ""],
    tokens: Int[Array, " P"],
    done: Int[Array, ""],
    length: Int[Array, ""],
    limit: Int[Array, ""],
    key: UInt32[Array, " 2"],
    stop_on_evict: Bool[Array, ""],
) -> tuple[DecodeState, Int[Array, ""], Int[Array, ""]]:
    """Read a prompt of ``length`` tokens (padded to P) into ``row``, from token ``done`` on, and draw its first token.

    With ``stop_on_evict`` it returns after every eviction, to be called again with the ``done`` it returned. Returns
    the state, ``done``, and the first token (-1 until ``done`` is ``length``).
    """
    model = nnx.merge(setup.graph, weights)
    # On a mesh every shard reads along, in a row of its own; what it would write is dropped unless the row is its.
    row, owned = own_row(row, state.active.shape[0])
    fresh = fresh_row(setup, state, length, limit, key)
    # The first token is drawn at the end: until then the row is at work on its prompt and nothing is generated.
    start, _ = slice_row(state, row)
    metadata = jax.tree.map(lambda new, old: jnp.where(done == 0, new.astype(old.dtype), old), fresh, start)
    state = put_row(state, dataclasses.replace(metadata, position=done[None]), state.cache.layers, row, owned)
    rows = jnp.arange(state.active.shape[0]) == row
    rows = rows if owned is None else rows & owned
    piece = piece_length(setup)
    evictions_before = state.evictions[row]
    last = jnp.zeros((1, 1, setup.config.d_model), model.dtype)

    def more(carry) -> jax.Array:
        state, done, _ = carry
        return (done < length) & ~(stop_on_evict & of_owner(state.evictions[row] > evictions_before, owned))

    def read(carry):
        state, done, last = carry
        room = state.cache.budget - of_owner(state.cache.length[row], owned)
        count = jnp.minimum(jnp.minimum(piece, room), length - done)
        padded = jnp.pad(tokens, (0, piece))  # so that a piece never starts too late to be cut whole
        ids = jax.lax.dynamic_slice_in_dim(padded, done, piece)
        state, hidden = _read_piece(setup, model, parameters, state, row, ids, count, owned)
        newest = jax.lax.dynamic_slice_in_dim(hidden, jnp.maximum(count - 1, 0), 1, axis=1)
        state = _evict_if_full(setup, parameters, state, rows, more_to_come=done + count < length)
        return state, done + count, jnp.where(count > 0, newest, last)

    state, done, last = jax.lax.while_loop(more, read, (state, done, last))

    finished = done == length
    metadata, _ = slice_row(state, row)
    metadata = dataclasses.replace(metadata, position=length[None] - 1, active=jnp.ones((1,), jnp.bool_))
    drawn = setup.sampler(model.logits(last)[:, 0], row_keys(key[None], SAMPLING, length[None]))
    ended, first = emit(metadata, drawn, setup)
    waiting = dataclasses.replace(metadata, position=done[None], active=jnp.zeros((1,), jnp.bool_))
    metadata = jax.tree.map(lambda x, y: jnp.where(finished, x, y), ended, waiting)
    first = of_owner(first[0], owned)
    return put_row(state, metadata, state.cache.layers, row, owned), done, jnp.where(finished, first, -1)


def _read_piece(
    setup: DecodeSetup,
    model,
    parameters: Any,
    state: DecodeState,
    row,
    ids: Int[Array, " T"],
    count: Int[Array, ""],
    owned: Bool[Array, ""] | None,
) -> tuple[DecodeState, jax.Array]:
    """``count`` of the tokens ``ids`` into the row's next slots. Returns the state and hidden states [1, T, D]."""
    if owned is not None:
        count = jnp.where(owned, count, 0)
    metadata, _ = slice_row(state, row)
    needs, token = setup.policy.needs, jnp.arange(ids.shape[0])
    length, position = metadata.cache.length[0], metadata.position[0] + token
    attend = ChunkAttention(row, position, length, count, needs)
    hidden, per_layer = model(ids[None], position[None], attend, state.cache.layers)
    layers, seen = zip(*per_layer, strict=True)
    attention, inputs = zip(*seen, strict=True)
    slot = jnp.broadcast_to((length + token)[None, None, None], (*metadata.cache.positions.shape[:3], ids.shape[0]))
    new = NewTokens(
        position=position[None],
        slot=slot,
        valid=(token < count)[None],
        occupied=(length + token + 1)[None],
        prompt_length=metadata.prompt_length,
        model=setup.config,
        parameters=parameters,
        tokens=ids[None] if needs.tokens else None,
        hidden=hidden if needs.hidden else None,
        inputs=inputs if needs.inputs else None,
        attention=attention if needs.attention else None,
    )
    metadata = record(metadata, (), (length + count)[None], new, setup)
    metadata = dataclasses.replace(metadata, position=metadata.position + count)
    return put_row(state, metadata, layers, row, owned), hidden


def _evict_if_full(setup: DecodeSetup, parameters: Any, state: DecodeState, rows, *, more_to_come) -> DecodeState:
    """A full row evicts if another token is coming; compaction serves one-in-one-out as well (the same tokens stay)."""
    full = rows & (state.cache.length == state.cache.budget) & more_to_come
    if not setup.policy.evicts:
        return state
    return evict(setup, parameters, state, full)
