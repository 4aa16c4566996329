"""One decode step, and the loop of many steps that runs on the device."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jkv.axes import Array, Bool, Int
from jkv.engine.cache import KVCache, LayerKV
from jkv.engine.eviction import evict, full_rows, slot_to_overwrite
from jkv.engine.row_shards import anywhere
from jkv.engine.state import SAMPLING, DecodeSetup, DecodeState, row_keys
from jkv.models.decoder import Decoder
from jkv.ops.decode_attention import decode_attention
from jkv.ops.rows import pad_rows
from jkv.policies.base import Needs, NewTokens
from jkv.pytree import pytree, static


@pytree
class SlotAttention:
    """Decode's way for a query to meet keys: insert the new key and value into the row's slot, attend to the occupied
    slots. What it saw, for policies that ask for it: (attention weights, inputs).

    Rows are padded for the projections (see ``pad_rows``); the buffer is not, so padding is dropped here.
    """

    slot: Int[Array, " *rows"]
    position: Int[Array, " B"]
    length: Int[Array, " B"]
    needs: Needs = static()
    implementation: str = static()

    def __call__(self, q, k, v, kv, x):
        layer: LayerKV = kv
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
    """Put each active row's token into its buffer and draw the next one. Returns that token, -1 for idle rows.

    Rows must have room: bulk eviction happens between steps, one-in-one-out eviction here.
    """
    active, needs = state.active, setup.policy.needs
    one_out = setup.policy.evicts and setup.rule.one_out
    evicted = full_rows(state) if one_out else jnp.zeros_like(active)
    if one_out:
        slot, metadata = slot_to_overwrite(setup, parameters, state, evicted)
        state = dataclasses.replace(state, **metadata)
    else:
        slot = jnp.broadcast_to(state.cache.length[:, None, None], state.cache.positions.shape[:3])
    cache = state.cache
    slot = jnp.where(active[:, None, None], slot, cache.budget)  # no such slot: idle rows write nothing
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


def _layer_slot(slot: Int[Array, "B l k"], index: int) -> jax.Array:
    of_layer = slot[:, index if slot.shape[1] > 1 else 0]
    return of_layer if of_layer.shape[1] > 1 else of_layer[:, 0]


def record(state: DecodeState, layers, length, new: NewTokens, setup: DecodeSetup) -> DecodeState:
    """Books after tokens were inserted: positions, the policy's own state, token ids if the policy wants them."""
    cache = KVCache(
        layers=layers,
        positions=new.write(state.cache.positions, new.position[:, None, None, :]),
        length=length,
    )
    slot_tokens = state.slot_tokens
    if slot_tokens is not None and new.tokens is not None:
        slot_tokens = new.write(slot_tokens, new.tokens[:, None, None, :])
    # A policy updates all rows; those that inserted nothing keep their state.
    seen = setup.policy.observe(state.policy, new)
    inserted = jnp.any(new.valid, axis=1)
    keep = lambda now, before: jnp.where(jax.lax.expand_dims(inserted, range(1, now.ndim)), now, before)
    return dataclasses.replace(
        state,
        cache=cache,
        policy=jax.tree.map(keep, seen, state.policy),
        slot_tokens=slot_tokens,
        peak=jnp.maximum(state.peak, length),
    )


def emit(state: DecodeState, token: jax.Array, setup: DecodeSetup) -> tuple[DecodeState, jax.Array]:
    """The drawn token becomes each active row's newest; rows end at eos or at their limit."""
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
    """Up to ``steps`` steps on the device. Returns the tokens drawn, -1 where a row drew none.

    Ends early when no row is active, when a row ended and ``stop_on_finish`` (a request waits for its place), or when a
    row evicted and ``stop_on_evict`` (the host wants to see what was kept). Bulk evictions run between the inner loop's
    steps, not inside a conditional: XLA would copy the buffer to merge the two branches.
    """
    model = nnx.merge(setup.graph, weights)
    active_at_start, evictions_at_start = state.active, state.evictions
    out = jnp.full((state.token.shape[0], steps), -1, jnp.int32)

    def more(carry, *, room: bool = False) -> jax.Array:
        state, _, done = carry
        finished = jnp.any(active_at_start & ~state.active)
        evicted = jnp.any(state.evictions > evictions_at_start)
        flags = (finished, evicted, jnp.any(state.active), *((jnp.any(full_rows(state)),) if room else ()))
        finished, evicted, active, *full = anywhere(*flags)
        stop = (stop_on_finish & finished) | (stop_on_evict & evicted)
        going = (done < steps) & active & ~stop
        return going & ~full[0] if room else going

    def one_step(carry):
        state, out, done = carry
        state, token = step(setup, model, parameters, state)
        return state, jax.lax.dynamic_update_slice(out, token[:, None], (jnp.int32(0), done)), done + 1

    def until_full(carry):
        carry = jax.lax.while_loop(lambda c: more(c, room=True), one_step, carry)
        return evict(setup, parameters, carry[0], full_rows(carry[0])), *carry[1:]

    body = until_full if setup.bulk else one_step
    state, out, _ = jax.lax.while_loop(more, body, (state, out, jnp.int32(0)))
    return state, out
