"""Chunked prefill: a prompt is read in chunks, each of which attends to the buffer. Between chunks a full row evicts.

The result is what decoding would give if the prompt's tokens were drawn one by one: a row that is full evicts before
its next token, so a chunk ends where the buffer is full. It serves prompts longer than the budget, and policies that
ask for every token's attention weights, which for a whole prompt at once would take T x T numbers a head.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Shaped

from jkv.axes import Array, Bool, Float, Int, UInt32
from jkv.engine.cache import LayerKV
from jkv.engine.eviction import evict, slice_row
from jkv.engine.prefill import fresh_row, put_row
from jkv.engine.row_shards import from_owner, own_row
from jkv.engine.state import SAMPLING, DecodeSetup, DecodeState, row_keys
from jkv.engine.step import Seen, emit, record
from jkv.models.decoder import Decoder
from jkv.ops.buffer import Buffer, by_part, dense, like
from jkv.policies.base import Needs, NewTokens
from jkv.pytree import pytree, static

MAX_CHUNK = 64  # tokens of a chunk at most
_MIN_CHUNK = 8  # unless the budget is smaller
_Carry = tuple[DecodeState, jax.Array, jax.Array]  # state, tokens read so far, hidden state of the newest [1, 1, D]


def chunk_length(setup: DecodeSetup) -> int:
    """T, the tokens that a chunk is padded to. A longer chunk than the room that an eviction makes would be mostly
    padding once the buffer is full."""
    rule = setup.rule
    return min(MAX_CHUNK, rule.budget, max(_MIN_CHUNK, rule.budget - rule.retain) if setup.policy.evicts else MAX_CHUNK)


@pytree
class ChunkAttention:
    """How a chunk's queries meet keys (`jkv.models.attention.Attend`): its keys and values are put into the row's next
    slots, and each token attends to the slots up to its own.

    Attributes:
        row: index among this shard's rows.
        position: of the chunk's tokens.
        length: slots that the row occupied before this chunk.
        count: tokens of the chunk. The rest is padding: it is not put into the buffer, and no token attends to it.
        needs: what the policy asks for.
    """

    row: Int[Array, ""]
    position: Int[Array, " T"]
    length: Int[Array, ""]
    count: Int[Array, ""]
    needs: Needs = static()

    def __call__(
        self,
        q: Float[Array, "1 T N H"],
        k: Float[Array, "1 T K H"],
        v: Float[Array, "1 T K H"],
        layer: LayerKV,
        x: Float[Array, "1 T D"],
    ) -> tuple[Float[Array, "1 T N H"], LayerKV, Seen]:
        chunk, (slots, h) = q.shape[1], layer.k.shape[2:]
        token = jnp.arange(chunk)
        k_slots, v_slots = (self._put(buffer, new) for buffer, new in ((layer.k, k), (layer.v, v)))

        cut = lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, self.row, 1)
        row = lambda buffer: dense(jax.tree.map(cut, buffer), jnp.float32)[0]  # [K, S, H]
        seen = jnp.arange(slots)[None, :] <= (self.length + token)[:, None]  # [T, S]
        keys = row(k_slots)
        live = jnp.arange(slots) < self.length + self.count
        values = jnp.where(live[None, :, None], row(v_slots), 0.0)
        grouped = q[0].reshape(chunk, keys.shape[0], -1, h).astype(jnp.float32)
        logits = jnp.einsum("TKGH,KSH->KGTS", grouped, keys) * h**-0.5
        weights = jax.nn.softmax(jnp.where(seen[None, None], logits, -jnp.inf), axis=-1)
        out = jnp.einsum("KGTS,KSH->TKGH", weights, values).reshape(q.shape).astype(q.dtype)

        queries = layer.queries
        if queries is not None:
            n = queries.shape[1]
            # Only the chunk's last n tokens are written: no place of the ring may be written twice.
            place = jnp.where((token < self.count) & (token >= self.count - n), self.position % n, n)
            queries = queries.at[self.row, place].set(q[0].astype(queries.dtype), mode="drop")
        attention = weights.reshape(1, q.shape[2], chunk, slots) if self.needs.attention else None
        return out, LayerKV(k_slots, v_slots, queries), (attention, x if self.needs.inputs else None)

    def _put(self, buffer: Buffer, new: Float[Array, "1 T K H"]) -> Buffer:
        """Put the chunk's first ``count`` keys or values into the row's next slots.

        A slice of T slots is read, changed and written back. For a scatter the TPU compiler would change the layout of
        the buffer, which copies all of it.
        """
        chunk, zero = new.shape[1], jnp.int32(0)
        start = jnp.minimum(self.length, buffer.shape[2] - chunk)
        token = jnp.arange(chunk) - (self.length - start)  # which of the tokens goes into each slot of the slice
        fresh = (token >= 0) & (token < self.count)

        def put(
            leaf: Shaped[Array, "B K a b"], tokens: Shaped[Array, "1 K c d"], *, axis: int
        ) -> Shaped[Array, "B K a b"]:
            """The same for one array of the buffer, whose slots lie along ``axis``."""
            corner = [self.row, zero, zero, zero]
            corner[axis] = start
            old = jax.lax.dynamic_slice(leaf, corner, (1, *tokens.shape[1:]))
            moved = jnp.take(tokens, jnp.clip(token, 0, chunk - 1), axis=axis, mode="clip")
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
    """Read a prompt into ``row`` and draw its first new token.

    Args:
        setup: what the program is compiled for.
        weights: the model's.
        state: the batch; the compiled program overwrites its buffers (they are donated).
        parameters: the policy's.
        row: index in the whole batch.
        tokens: the prompt, padded at its end to P tokens.
        done: tokens read by earlier calls for this prompt; 0 begins it.
        length: tokens of the prompt without padding.
        limit: new tokens at most.
        key: raw random key of the request (`jkv.engine.state.request_key`).
        stop_on_evict: return after every eviction. Call again with the ``done`` that came back.

    Returns:
        The state; the tokens read so far; and the first new token, -1 until all of the prompt is read.
    """
    model = nnx.merge(setup.graph, weights)
    # Where rows are sharded, all shards read the prompt, each into a row of its own. Only the owner writes.
    row, owned = own_row(row, state.active.shape[0])
    fresh = fresh_row(setup, state, length, limit, key)
    # A call that goes on with a prompt (done > 0) takes the row's metadata as the call before left it.
    start, _ = slice_row(state, row)
    metadata = jax.tree.map(lambda new, old: jnp.where(done == 0, new.astype(old.dtype), old), fresh, start)
    state = put_row(state, dataclasses.replace(metadata, position=done[None]), state.cache.layers, row, owned)
    rows = jnp.arange(state.active.shape[0]) == row
    rows = rows if owned is None else rows & owned
    chunk = chunk_length(setup)
    evictions_before = state.evictions[row]
    last = jnp.zeros((1, 1, setup.config.d_model), model.dtype)

    def more(carry: _Carry) -> Bool[Array, ""]:
        """Whether to read another chunk in this call."""
        state, done, _ = carry
        return (done < length) & ~(stop_on_evict & from_owner(state.evictions[row] > evictions_before, owned))

    def read(carry: _Carry) -> _Carry:
        """Read a chunk, as long as there is room for; a full row evicts."""
        state, done, last = carry
        room = state.cache.budget - from_owner(state.cache.length[row], owned)
        count = jnp.minimum(jnp.minimum(chunk, room), length - done)
        padded = jnp.pad(tokens, (0, chunk))  # so that the slice of the last chunk doesn't reach past the end
        ids = jax.lax.dynamic_slice_in_dim(padded, done, chunk)
        state, hidden = _read_chunk(setup, model, parameters, state, row, ids, count, owned)
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
    first = from_owner(first[0], owned)
    return put_row(state, metadata, state.cache.layers, row, owned), done, jnp.where(finished, first, -1)


def _read_chunk(
    setup: DecodeSetup,
    model: Decoder,
    parameters: Any,
    state: DecodeState,
    row: Int[Array, ""],
    ids: Int[Array, " T"],
    count: Int[Array, ""],
    owned: Bool[Array, ""] | None,
) -> tuple[DecodeState, Float[Array, "1 T D"]]:
    """Put the first ``count`` of the tokens ``ids`` into the row's next slots. Returns the state and the tokens' hidden
    states."""
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


def _evict_if_full(
    setup: DecodeSetup,
    parameters: Any,
    state: DecodeState,
    rows: Bool[Array, " B"],
    *,
    more_to_come: Bool[Array, ""],
) -> DecodeState:
    """Of ``rows``, those that are full evict if the prompt has another token. Slots are compacted even where decoding
    would overwrite one: the same tokens stay."""
    full = rows & (state.cache.length == state.cache.budget) & more_to_come
    if not setup.policy.evicts:
        return state
    return evict(setup, parameters, state, full)
