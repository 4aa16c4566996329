"""Eviction: the policy scores the slots, the best are selected, and the buffer is compacted or one slot overwritten.

If many tokens go at once (`evict`), the kept slots move to the front of the buffer, and what has one entry a slot moves
with them: positions, token ids, and the policy's state (see ``move`` there). If one token goes
(`slot_to_overwrite`), nothing moves: the new token takes its slot.

Where the policy reads the buffer (keys, values, recent queries), or every head has a keep set of its own, evicting rows
are scored one at a time: temporaries are those of one row, rows that don't evict cost nothing, and a row's numbers
can't depend on its neighbours. Otherwise all rows are scored at once.
"""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Shaped

from jkv.axes import Array, Bool, Float, Int
from jkv.engine.cache import KVCache, LayerKV
from jkv.engine.priority import priority, victim
from jkv.engine.row_shards import on_any_shard, rows_are_sharded, write_row
from jkv.engine.state import EVICTION, DecodeSetup, DecodeState, Scored, row_keys
from jkv.errors import UserError
from jkv.ops.buffer import dense
from jkv.ops.evict import compact
from jkv.ops.select import select
from jkv.ops.sharding import per_shard
from jkv.policies.base import Policy, Slots


def full_rows(state: DecodeState) -> Bool[Array, " B"]:
    """Which rows have no slot for their next token, and must evict first."""
    return state.active & (state.cache.length == state.cache.budget)


def slots_for_policy(setup: DecodeSetup, parameters: Any, metadata: DecodeState, layers: tuple[LayerKV, ...]) -> Slots:
    """What the policy is shown when it scores: of the optional parts only those that its ``needs`` name.

    Args:
        setup: what the program is compiled for.
        parameters: the policy's.
        metadata: of the rows that are scored.
        layers: the buffers of the same rows.
    """
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
        # Every layer has the ring where the policy asks for it (`jkv.engine.state.empty_state`).
        queries=tuple(x.queries for x in layers if x.queries is not None) if needs.queries else None,
    )


def choose_slots(
    setup: DecodeSetup, parameters: Any, state: DecodeState, rows: Bool[Array, " B"], *, overwrite: bool
) -> tuple[Int[Array, "B l k kept"], dict[str, Any]]:
    """Score the rows that evict, and choose their slots.

    Args:
        setup: what the program is compiled for.
        parameters: the policy's.
        state: the batch.
        rows: which rows evict.
        overwrite: choose the one slot that is to be overwritten, not those that stay.

    Returns:
        For each row and keep set the R slots that stay, ascending, or with ``overwrite`` the one that goes; rows that
        don't evict get the first slots. And the fields of the state that scoring changed, by name: ``policy`` (after
        ``Policy.look``) and ``scored`` (None unless scores are recorded).

    Raises:
        UserError: the policy's scores have a wrong shape.
    """
    kept = 1 if overwrite else setup.rule.retain
    nothing = jnp.broadcast_to(
        jnp.arange(kept, dtype=jnp.int32)[None, None, None], (*state.cache.positions.shape[:3], kept)
    )

    def choose(metadata: DecodeState, layers: tuple[LayerKV, ...]) -> tuple[Int[Array, "B l k kept"], dict[str, Any]]:
        """The choice for these rows, as if all of them evicted."""
        slots = slots_for_policy(setup, parameters, metadata, layers)
        looked = setup.policy.look(metadata.policy, slots)
        scores = priority(_checked_scores(setup.policy, looked, slots), slots)
        changed = {"policy": looked, "scored": Scored(scores, slots.positions) if setup.record_scores else None}
        if overwrite:
            return victim(scores, slots.positions)[..., None], changed
        return select(scores, slots.positions, kept, implementation=setup.implementation), changed

    before = {"policy": state.policy, "scored": state.scored}

    if not (setup.policy.needs.buffer or setup.rule.granularity == "head"):

        def all_rows() -> tuple[Int[Array, "B l k kept"], dict[str, Any]]:
            """All rows are scored; those that don't evict get ``nothing`` and ``before``."""
            chosen, changed = choose(state, state.cache.layers)
            update = lambda now, before: jnp.where(jax.lax.expand_dims(rows, range(1, now.ndim)), now, before)
            return update(chosen, nothing), jax.tree.map(update, changed, before)

        (some,) = on_any_shard(jnp.any(rows))
        return jax.lax.cond(some, all_rows, lambda: (nothing, before))

    row = jnp.arange(rows.shape[0], dtype=jnp.int32)

    def next_row(after: Int[Array, ""]) -> Int[Array, ""]:
        """The next row that evicts; B if there is none."""
        return jnp.min(jnp.where(rows & (row > after), row, jnp.int32(rows.shape[0])))

    def one_row(carry: tuple[jax.Array, jax.Array, dict[str, Any]]) -> tuple[jax.Array, jax.Array, dict[str, Any]]:
        """Score one row, and write its part of the results."""
        b, chosen, changed = carry
        here, changed_here = choose(*slice_row(dataclasses.replace(state, **changed), b))
        owned = b < rows.shape[0] if rows_are_sharded() else None  # False: only other shards have rows left to score
        put = lambda leaf, value: write_row(leaf, value, b, owned)
        return next_row(b), put(chosen, here), jax.tree.map(put, changed, changed_here)

    start = (next_row(jnp.int32(-1)), nothing, before)
    _, chosen, changed = jax.lax.while_loop(lambda carry: on_any_shard(carry[0] < rows.shape[0])[0], one_row, start)
    return chosen, changed


def _checked_scores(policy: Policy, state: Any, slots: Slots) -> Float[Array, "B score_layers score_heads S"]:
    """The policy's scores.

    If the policy fails, a note on its error names the parts of ``slots`` that it did not ask for, which are None.

    Raises:
        UserError: the scores are not one number a slot, for all layers and KV heads or for each.
    """
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
    """One row's metadata [B = 1], and its part of each layer's buffer."""
    cut = lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, row, 1, axis=0)
    metadata = dataclasses.replace(state, cache=dataclasses.replace(state.cache, layers=()))
    return jax.tree.map(cut, metadata), tuple(jax.tree.map(cut, layer) for layer in state.cache.layers)


def evict(setup: DecodeSetup, parameters: Any, state: DecodeState, rows: Bool[Array, " B"]) -> DecodeState:
    """Evict many tokens at once: in ``rows``, ``rule.retain`` slots stay, and move to the front in their order.

    Other rows stay as they are.

    Raises:
        UserError: the policy's scores have a wrong shape.
    """
    source, changed = choose_slots(setup, parameters, state, rows, overwrite=False)
    cache = state.cache

    layers = []
    for index, layer in enumerate(cache.layers):
        kept = source[:, index if source.shape[1] > 1 else 0]  # [B, k, R]
        kept = kept if kept.shape[1] > 1 else kept[:, 0]
        compact_layer = functools.partial(compact, implementation=setup.implementation)
        letters = ("BKSH", "BKSH", "BKR" if kept.ndim == 3 else "BR", "B")
        k, v = per_shard(compact_layer, letters, letters[:2])(layer.k, layer.v, kept, rows)
        layers.append(dataclasses.replace(layer, k=k, v=v))

    def move(leaf: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
        """Entries of the kept slots moved to the front, as in the buffer, if the leaf has one entry a slot: that is,
        if it has the shape [B, l, k, S] of the positions."""
        if leaf.shape != cache.positions.shape:
            return leaf
        front = jnp.take_along_axis(leaf, source, axis=-1)
        front = jnp.where(rows[:, None, None, None], front, leaf[..., : setup.rule.retain])
        return jax.lax.dynamic_update_slice_in_dim(leaf, front, 0, axis=-1)

    length = jnp.where(rows, setup.rule.retain, cache.length)
    return dataclasses.replace(
        state,
        cache=KVCache(tuple(layers), move(cache.positions), length),
        policy=jax.tree.map(move, changed["policy"]),
        scored=changed["scored"],
        slot_tokens=None if state.slot_tokens is None else move(state.slot_tokens),
        evictions=state.evictions + rows.astype(jnp.int32),
    )


def slot_to_overwrite(
    setup: DecodeSetup, parameters: Any, state: DecodeState, rows: Bool[Array, " B"]
) -> tuple[Int[Array, "B l k"], dict[str, Any]]:
    """Evict one token a row, whose slot the next token takes. Nothing moves.

    Args:
        setup: what the program is compiled for.
        parameters: the policy's.
        state: the batch.
        rows: which rows evict.

    Returns:
        The slot for each row's next token: that of the evicted token, or in other rows the first dead slot. And the
        fields of the state that scoring changed (`choose_slots`).

    Raises:
        UserError: the policy's scores have a wrong shape.
    """
    chosen, changed = choose_slots(setup, parameters, state, rows, overwrite=True)
    next_slot = jnp.broadcast_to(state.cache.length[:, None, None], state.cache.positions.shape[:3])
    return jnp.where(rows[:, None, None], chosen[..., 0], next_slot), changed
