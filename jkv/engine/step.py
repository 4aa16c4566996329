"""One decode step, and the loop of many steps that runs on the device.

A step puts each active row's newest token into the buffer, runs the model, and draws the next token. A row that is full
evicts first: one token within the step (its slot is overwritten), or many between steps.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jkv.axes import Array, Bool, Float, Int
from jkv.engine.cache import KVCache, LayerKV
from jkv.engine.eviction import evict, full_rows, slot_to_overwrite
from jkv.engine.row_shards import on_any_shard
from jkv.engine.state import SAMPLING, DecodeSetup, DecodeState, row_keys
from jkv.models.decoder import Decoder
from jkv.ops.decode_attention import decode_attention
from jkv.ops.rows import pad_rows
from jkv.policies.base import Needs, NewTokens
from jkv.pytree import pytree, static

# What a policy may ask for of one layer (`Needs`): attention weights and what entered the layer; None if it didn't.
Seen = tuple[Float[Array, "B N T S"] | None, Float[Array, "B T D"] | None]
_Carry = tuple[DecodeState, jax.Array, jax.Array]  # state, tokens drawn so far [B, steps], steps made


@pytree
class SlotAttention:
    """How a query meets keys in a decode step (`jkv.models.attention.Attend`): each row's new key and value are put
    into its slot, then its query attends to the occupied slots.

    The model's rows are padded (see `jkv.ops.rows.pad_rows`), the buffer's are not: the padding is dropped here.

    Attributes:
        slot: where the new token goes, for each row, or for each row and KV head; S (no such slot) for idle rows.
        position: of the new token.
        length: occupied slots, the new token's included.
        needs: what the policy asks for.
        implementation: which implementation of the attention runs.
    """

    slot: Int[Array, " *rows"]
    position: Int[Array, " B"]
    length: Int[Array, " B"]
    needs: Needs = static()
    implementation: str = static()

    def __call__(
        self,
        q: Float[Array, "padded 1 N H"],
        k: Float[Array, "padded 1 K H"],
        v: Float[Array, "padded 1 K H"],
        layer: LayerKV,
        x: Float[Array, "padded 1 D"],
    ) -> tuple[Float[Array, "padded 1 N H"], LayerKV, Seen]:
        rows, padded = self.length.shape[0], q.shape[0]
        q, k, v = (x[:rows, 0] for x in (q, k, v))
        wanted, how = self.needs.attention, self.implementation
        out, k_slots, v_slots, attention = decode_attention(
            q, k, v, layer.k, layer.v, self.slot, self.length, weights=wanted, implementation=how
        )
        attention = None if attention is None else attention[:, :, None, :]
        queries = layer.queries
        if queries is not None:
            put = lambda ring, at, query: jax.lax.dynamic_update_slice_in_dim(ring, query[None], at, axis=0)
            queries = jax.vmap(put)(queries, self.position % queries.shape[1], q)
        inputs = x[:rows] if self.needs.inputs else None
        out = jnp.pad(out, ((0, padded - rows), (0, 0), (0, 0)))
        return out[:, None], LayerKV(k_slots, v_slots, queries), (attention, inputs)


def step(
    setup: DecodeSetup, model: Decoder, parameters: Any, state: DecodeState
) -> tuple[DecodeState, Int[Array, " B"]]:
    """Put each active row's newest token into its buffer, and draw the next one.

    If the run evicts one token at a time, a full row evicts here. If it evicts many at once, no active row may be full:
    that eviction happens between steps (`decode`).

    Args:
        setup: what the program is compiled for.
        model: the decoder, with its weights.
        parameters: the policy's.
        state: the batch.

    Returns:
        The state, and the tokens drawn, -1 for rows that are not active.
    """
    active, needs = state.active, setup.policy.needs
    one_out = setup.policy.evicts and setup.rule.one_out
    evicted = full_rows(state) if one_out else jnp.zeros_like(active)
    if one_out:
        slot, changed = slot_to_overwrite(setup, parameters, state, evicted)
        state = dataclasses.replace(state, **changed)
    else:
        slot = jnp.broadcast_to(state.cache.length[:, None, None], state.cache.positions.shape[:3])
    cache = state.cache
    slot = jnp.where(active[:, None, None], slot, cache.budget)  # there is no slot S: idle rows write nothing
    length = jnp.where(active, jnp.minimum(cache.length + 1, cache.budget), cache.length)

    attends = tuple(
        SlotAttention(_layer_slot(slot, index), state.position, length, needs, setup.implementation)
        for index in range(len(cache.layers))
    )
    tokens, positions = pad_rows(state.token), pad_rows(state.position)
    hidden, per_layer = model(tokens[:, None], positions[:, None], attends, cache.layers)
    layers, seen = zip(*per_layer, strict=True)
    attention, inputs = zip(*seen, strict=True)
    rows = state.token.shape[0]
    logits = model.logits(hidden)[:rows, 0]

    new = NewTokens(
        position=state.position[:, None],
        slot=slot[..., None],
        valid=active[:, None],
        occupied=length[:, None],
        prompt_length=state.prompt_length,
        model=setup.config,
        parameters=parameters,
        tokens=state.token[:, None] if needs.tokens else None,
        hidden=hidden[:rows] if needs.hidden else None,
        inputs=inputs if needs.inputs else None,
        attention=attention if needs.attention else None,
    )
    drawn = setup.sampler(logits, row_keys(state.key, SAMPLING, state.position + 1))
    state = record(state, layers, length, new, setup)
    state = dataclasses.replace(
        state,
        evictions=state.evictions + evicted.astype(jnp.int32),
        slot_steps=state.slot_steps + jnp.where(active, length, 0),
    )
    return emit(state, jnp.where(active, drawn, -1), setup)


def _layer_slot(slot: Int[Array, "B l k"], index: int) -> Int[Array, "B k"] | Int[Array, " B"]:
    """The slots of one layer; one a row where all its KV heads use the same."""
    of_layer = slot[:, index if slot.shape[1] > 1 else 0]
    return of_layer if of_layer.shape[1] > 1 else of_layer[:, 0]


def record(
    state: DecodeState, layers: tuple[LayerKV, ...], length: Int[Array, " B"], new: NewTokens, setup: DecodeSetup
) -> DecodeState:
    """Bring metadata up to date after tokens were put into the buffer: positions, token ids if the policy asks for
    them, and the policy's state (``Policy.observe``).

    Args:
        state: before the tokens were put in.
        layers: the buffers with the tokens in them; () where only metadata is passed around.
        length: occupied slots, the new tokens' included.
        new: the tokens.
        setup: what the program is compiled for.
    """
    cache = KVCache(
        layers=layers,
        positions=new.write(state.cache.positions, new.position[:, None, None, :]),
        length=length,
    )
    slot_tokens = state.slot_tokens
    if slot_tokens is not None and new.tokens is not None:
        slot_tokens = new.write(slot_tokens, new.tokens[:, None, None, :])
    # The policy updates the state of all rows: undo that for rows into which nothing was put.
    observed = setup.policy.observe(state.policy, new)
    inserted = jnp.any(new.valid, axis=1)
    update = lambda now, before: jnp.where(jax.lax.expand_dims(inserted, range(1, now.ndim)), now, before)
    return dataclasses.replace(
        state,
        cache=cache,
        policy=jax.tree.map(update, observed, state.policy),
        slot_tokens=slot_tokens,
        peak=jnp.maximum(state.peak, length),
    )


def emit(state: DecodeState, token: Int[Array, " B"], setup: DecodeSetup) -> tuple[DecodeState, Int[Array, " B"]]:
    """Make the drawn tokens the newest ones of the active rows. A row becomes inactive when its token ends the sequence
    or is the last one that its request allows.

    Returns:
        The state, and ``token`` as it came.
    """
    active = state.active
    generated = state.generated + active.astype(jnp.int32)
    ended = generated >= state.limit
    for eos in setup.eos_ids:
        ended |= token == eos
    state = dataclasses.replace(
        state,
        token=jnp.where(active, token, state.token),
        position=state.position + active.astype(jnp.int32),
        generated=generated,
        active=active & ~ended,
    )
    return state, token


def decode(
    setup: DecodeSetup,
    weights: nnx.State,
    state: DecodeState,
    parameters: Any,
    stop_on_finish: Bool[Array, ""],
    stop_on_evict: Bool[Array, ""],
    *,
    steps: int,
) -> tuple[DecodeState, Int[Array, "B steps"]]:
    """Up to ``steps`` decode steps on the device. It ends early when no row is active.

    Evictions of many tokens are not in a conditional in the step, because XLA would copy the buffer to merge the two
    branches. Instead an inner loop steps until a row is full, and the outer loop evicts.

    Args:
        setup: what the program is compiled for.
        weights: the model's.
        state: the batch; the compiled program overwrites its buffers (they are donated).
        parameters: the policy's.
        stop_on_finish: end as soon as a row has finished (another request waits for its place).
        stop_on_evict: end as soon as a row has evicted (the host reads what stayed).
        steps: how many at most; part of what is compiled.

    Returns:
        The state, and the tokens drawn in each step, -1 where a row drew none.
    """
    model = nnx.merge(setup.graph, weights)
    active_at_start, evictions_at_start = state.active, state.evictions
    out = jnp.full((state.token.shape[0], steps), -1, jnp.int32)

    def more(carry: _Carry, *, room: bool = False) -> Bool[Array, ""]:
        """Whether to go on; with ``room``, only while no row is full."""
        state, _, done = carry
        finished = jnp.any(active_at_start & ~state.active)
        evicted = jnp.any(state.evictions > evictions_at_start)
        flags = (finished, evicted, jnp.any(state.active), *((jnp.any(full_rows(state)),) if room else ()))
        finished, evicted, active, *full = on_any_shard(*flags)
        stop = (stop_on_finish & finished) | (stop_on_evict & evicted)
        going = (done < steps) & active & ~stop
        return going & ~full[0] if room else going

    def one_step(carry: _Carry) -> _Carry:
        """One step of all rows."""
        state, out, done = carry
        state, token = step(setup, model, parameters, state)
        return state, jax.lax.dynamic_update_slice(out, token[:, None], (jnp.int32(0), done)), done + 1

    def until_full(carry: _Carry) -> _Carry:
        """Steps until a row is full or the call ends; full rows evict."""
        carry = jax.lax.while_loop(lambda c: more(c, room=True), one_step, carry)
        return evict(setup, parameters, carry[0], full_rows(carry[0])), *carry[1:]

    body = until_full if setup.bulk else one_step
    state, out, _ = jax.lax.while_loop(more, body, (state, out, jnp.int32(0)))
    return state, out
