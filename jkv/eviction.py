"""Eviction: the policy scores, ``select`` keeps, the buffer is compacted and everything that follows slots with it."""

import dataclasses

import jax
import jax.numpy as jnp

from jkv.axes import Array, Bool, Int
from jkv.cache import KVCache
from jkv.ops.evict import compact
from jkv.policies.base import Slots, priority, select, victim
from jkv.state import EVICTION, DecodeState, Program, row_keys


def full_rows(state: DecodeState) -> Bool[Array, " B"]:
    """Rows that must evict before their next token."""
    return state.active & (state.cache.length == state.cache.budget)


def see_slots(program: Program, state: DecodeState, evicting: Bool[Array, " B"]) -> Slots:
    """What the policy may look at when it scores: only what it declared."""
    cache, needs = state.cache, program.policy.needs
    slot = jnp.arange(cache.budget)
    return Slots(
        positions=cache.positions,
        occupied=slot[None, :] < cache.length[:, None],
        length=cache.length,
        newest=state.newest,
        prompt_length=state.prompt_length,
        evicting=evicting,
        rng=row_keys(state.key, EVICTION, state.newest),
        tokens=state.slot_tokens,
        keys=tuple(layer.k for layer in cache.layers) if needs.keys else None,
        values=tuple(layer.v for layer in cache.layers) if needs.values else None,
        queries=tuple(layer.queries for layer in cache.layers) if needs.queries else None,  # pyright: ignore[reportArgumentType]
    )


def evict(program: Program, state: DecodeState) -> DecodeState:
    """Bulk eviction of every full row: ``retain`` slots stay, moved to the front in order. Others are untouched."""
    rows = full_rows(state)
    slots = see_slots(program, state, rows)
    scores = priority(program.policy.score(state.policy, slots), slots, program.rule)
    source = select(scores, slots.positions, program.rule.retain)
    cache = state.cache

    layers = []
    for index, layer in enumerate(cache.layers):
        kept = source[:, index if source.shape[1] > 1 else 0]  # [B, k, R]
        kept = kept if kept.shape[1] > 1 else kept[:, 0]
        k, v = compact(layer.k, layer.v, kept, rows, implementation=program.implementation)
        layers.append(dataclasses.replace(layer, k=k, v=v))

    def follow(leaf: jax.Array) -> jax.Array:
        if leaf.shape != slots.positions.shape:
            return leaf
        front = jnp.take_along_axis(leaf, source, axis=-1)
        front = jnp.where(rows[:, None, None, None], front, leaf[..., : program.rule.retain])
        return jax.lax.dynamic_update_slice_in_dim(leaf, front, 0, axis=-1)

    length = jnp.where(rows, program.rule.retain, cache.length)
    return dataclasses.replace(
        state,
        cache=KVCache(tuple(layers), follow(cache.positions), length),
        policy=jax.tree.map(follow, state.policy),
        slot_tokens=None if state.slot_tokens is None else follow(state.slot_tokens),
        evictions=state.evictions + rows.astype(jnp.int32),
    )


def slot_to_overwrite(program: Program, state: DecodeState) -> Int[Array, "B l k"]:
    """One-in-one-out: for full rows the victim's slot, for others the next dead slot. Nothing moves."""
    rows = full_rows(state)
    next_slot = jnp.broadcast_to(state.cache.length[:, None, None], state.cache.positions.shape[:3])

    def score() -> jax.Array:
        slots = see_slots(program, state, rows)
        scores = priority(program.policy.score(state.policy, slots), slots, program.rule)
        return jnp.where(rows[:, None, None], victim(scores, slots.positions), next_slot)

    return jax.lax.cond(jnp.any(rows), score, lambda: next_slot)
