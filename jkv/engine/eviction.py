"""Eviction: the policy scores, ``select`` keeps, the buffer is compacted and everything that follows slots with it.

Policies that read the buffer (keys, values, recent queries) and keep sets per head are scored one evicting row at a
time: temporaries are those of one row, rows that don't evict cost nothing, and a row's numbers can't depend on its
neighbours. The others are scored all rows at once.
"""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp

from jkv.axes import Array, Bool, Int
from jkv.engine.cache import KVCache, LayerKV
from jkv.engine.priority import priority, victim
from jkv.engine.row_shards import anywhere, spread, write_row
from jkv.engine.state import EVICTION, DecodeSetup, DecodeState, Scored, row_keys
from jkv.errors import UserError
from jkv.ops.buffer import dense
from jkv.ops.evict import compact
from jkv.ops.select import select
from jkv.ops.sharding import per_shard
from jkv.policies.base import Policy, Slots


def full_rows(state: DecodeState) -> Bool[Array, " B"]:
    """Rows that must evict before their next token."""
    return state.active & (state.cache.length == state.cache.budget)


def see_slots(setup: DecodeSetup, parameters: Any, metadata: DecodeState, layers: tuple[LayerKV, ...]) -> Slots:
    """What the policy may look at when it scores: only what it declared."""
    cache, needs = metadata.cache, setup.policy.needs
    slot = jnp.arange(cache.budget)
    return Slots(
        positions=cache.positions,
        occupied=slot[None, :] < cache.length[:, None],
        length=cache.length,
        newest=metadata.newest,
        prompt_length=metadata.prompt_length,
        rng=row_keys(metadata.key, EVICTION, metadata.newest),
        rule=setup.rule,
        model=setup.config,
        implementation=setup.implementation,
        parameters=parameters,
        tokens=metadata.slot_tokens,
        keys=tuple(dense(layer.k) for layer in layers) if needs.keys or needs.queries else None,
        values=tuple(dense(layer.v) for layer in layers) if needs.values else None,
        queries=tuple(layer.queries for layer in layers) if needs.queries else None,  # pyright: ignore[reportArgumentType]
    )


def decide(
    setup: DecodeSetup, parameters: Any, state: DecodeState, rows: Bool[Array, " B"], *, overwrite: bool
) -> tuple[Int[Array, "B l k kept"], dict[str, Any]]:
    """For every row that evicts: the slots that stay (kept = R) or, to ``overwrite``, the one that goes (kept = 1).
    Other rows get the first slots. Also the books that scoring changed, by name: the policy's state after it looked,
    and, where scores are recorded, what was seen."""
    kept = 1 if overwrite else setup.rule.retain
    nothing = jnp.broadcast_to(
        jnp.arange(kept, dtype=jnp.int32)[None, None, None], (*state.cache.positions.shape[:3], kept)
    )

    def choose(metadata: DecodeState, layers: tuple[LayerKV, ...]) -> tuple[Int[Array, "B l k kept"], dict[str, Any]]:
        slots = see_slots(setup, parameters, metadata, layers)
        looked = setup.policy.look(metadata.policy, slots)
        scores = priority(_scores(setup.policy, looked, slots), slots)
        changed = {"policy": looked, "scored": Scored(scores, slots.positions) if setup.record_scores else None}
        if overwrite:
            return victim(scores, slots.positions)[..., None], changed
        return select(scores, slots.positions, kept, implementation=setup.implementation), changed

    before = {"policy": state.policy, "scored": state.scored}

    if not (setup.policy.needs.buffer or setup.rule.granularity == "head"):

        def all_rows() -> tuple[Int[Array, "B l k kept"], dict[str, Any]]:
            chosen, changed = choose(state, state.cache.layers)
            keep = lambda now, before: jnp.where(jax.lax.expand_dims(rows, range(1, now.ndim)), now, before)
            return keep(chosen, nothing), jax.tree.map(keep, changed, before)

        (some,) = anywhere(jnp.any(rows))
        return jax.lax.cond(some, all_rows, lambda: (nothing, before))

    row = jnp.arange(rows.shape[0], dtype=jnp.int32)

    def next_row(after: jax.Array) -> jax.Array:
        return jnp.min(jnp.where(rows & (row > after), row, jnp.int32(rows.shape[0])))

    def one_row(carry):
        b, chosen, metadata = carry
        here, changed = choose(*slice_row(dataclasses.replace(state, **metadata), b))
        owned = b < rows.shape[0] if spread() else None  # a shard whose rows are done waits for the others'
        put = lambda leaf, value: write_row(leaf, value, b, owned)
        return next_row(b), put(chosen, here), jax.tree.map(put, metadata, changed)

    start = (next_row(jnp.int32(-1)), nothing, before)
    _, chosen, metadata = jax.lax.while_loop(lambda carry: anywhere(carry[0] < rows.shape[0])[0], one_row, start)
    return chosen, metadata


def _scores(policy: Policy, state: Any, slots: Slots) -> jax.Array:
    """What the policy says. Raises UserError for a shape that is none of slots; its own errors say what it did not ask
    for."""
    try:
        scores = policy.score(state, slots)
    except (AttributeError, TypeError) as error:
        absent = ", ".join(name for name in ("tokens", "keys", "values", "queries") if getattr(slots, name) is None)
        if absent:
            error.add_note(f"policy {policy.name!r}: its needs don't name {absent}; they are None in slots")
        raise
    b, _, _, s = slots.positions.shape
    layers, heads = slots.model.n_layers, slots.model.n_kv_heads
    shape = getattr(scores, "shape", None)
    if shape not in [(b, *of, s) for of in itertools.product((1, layers), (1, heads))]:
        mend = f"return one number a slot: [B, 1, 1, S] = {(b, 1, 1, s)}, or [B, L, K, S] = {(b, layers, heads, s)}"
        raise UserError(f"its score has shape {shape}", where=f"policy {policy.name}", mend=mend)
    return scores


def slice_row(state: DecodeState, row: Int[Array, ""]) -> tuple[DecodeState, tuple[LayerKV, ...]]:
    """One row [B = 1] of the books (without layers), and of each layer's buffer."""
    cut = lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, row, 1, axis=0)
    metadata = dataclasses.replace(state, cache=dataclasses.replace(state.cache, layers=()))
    return jax.tree.map(cut, metadata), tuple(jax.tree.map(cut, layer) for layer in state.cache.layers)


def evict(setup: DecodeSetup, parameters: Any, state: DecodeState, rows: Bool[Array, " B"]) -> DecodeState:
    """Bulk eviction of ``rows``: ``retain`` slots stay, moved to the front in order. Other rows are untouched."""
    source, metadata = decide(setup, parameters, state, rows, overwrite=False)
    cache = state.cache

    layers = []
    for index, layer in enumerate(cache.layers):
        kept = source[:, index if source.shape[1] > 1 else 0]  # [B, k, R]
        kept = kept if kept.shape[1] > 1 else kept[:, 0]
        move = functools.partial(compact, implementation=setup.implementation)
        letters = ("BKSH", "BKSH", "BKR" if kept.ndim == 3 else "BR", "B")
        k, v = per_shard(move, letters, letters[:2])(layer.k, layer.v, kept, rows)
        layers.append(dataclasses.replace(layer, k=k, v=v))

    def follow(leaf: jax.Array) -> jax.Array:
        if leaf.shape != cache.positions.shape:
            return leaf
        front = jnp.take_along_axis(leaf, source, axis=-1)
        front = jnp.where(rows[:, None, None, None], front, leaf[..., : setup.rule.retain])
        return jax.lax.dynamic_update_slice_in_dim(leaf, front, 0, axis=-1)

    length = jnp.where(rows, setup.rule.retain, cache.length)
    return dataclasses.replace(
        state,
        cache=KVCache(tuple(layers), follow(cache.positions), length),
        policy=jax.tree.map(follow, metadata["policy"]),
        scored=metadata["scored"],
        slot_tokens=None if state.slot_tokens is None else follow(state.slot_tokens),
        evictions=state.evictions + rows.astype(jnp.int32),
    )


def slot_to_overwrite(
    setup: DecodeSetup, parameters: Any, state: DecodeState, rows: Bool[Array, " B"]
) -> tuple[Int[Array, "B l k"], dict[str, Any]]:
    """One-in-one-out: for ``rows`` the victim's slot, for others the next dead slot. Nothing moves. Also the books that
    scoring changed, by name (see ``decide``)."""
    chosen, metadata = decide(setup, parameters, state, rows, overwrite=True)
    next_slot = jnp.broadcast_to(state.cache.length[:, None, None], state.cache.positions.shape[:3])
    return jnp.where(rows[:, None, None], chosen[..., 0], next_slot), metadata
