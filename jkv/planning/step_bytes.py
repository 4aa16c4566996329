"""The bytes that a decode step can't do without, a device: what the roofline is made of. Sums that a hand can check."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jkv.engine.state import DecodeState
from jkv.ops.sharding import DATA, MODEL
from jkv.planning.compile import Target


def shard_bytes(tree: Any) -> int:
    """Bytes a device of a pytree of arrays or placed shapes, without the padding of the device's tiles."""
    sizes = (math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))
    return sum(sizes)


def kv_bytes(target: Target, rows: int) -> int:
    """Bytes a device of the key and value buffers, scales of int8 included."""
    whole = target.config.kv_bytes(rows, target.rule.budget, jnp.dtype(target.dtype).itemsize, target.kv)
    return whole // target.mesh.size


def mean_occupancy(target: Target) -> float:
    """Slots that a step's query meets, over the steps between two evictions: from retain + 1 to budget."""
    rule = target.rule
    if not target.policy.evicts or rule.one_out:
        return float(rule.budget)
    return (rule.retain + 1 + rule.budget) / 2


def step_bytes(target: Target, rows: int) -> dict[str, int]:
    """By part, the bytes a device must move in a step that evicts nothing, at the mean occupancy.

    weights: each once; of the embedding only the rows' own tokens, unless it is the head too.  policy: its parameters,
    where every token needs them.  kv_read: the occupied slots.  kv_written: one a row.  attention: its weights, written
    and read, where the policy wants them.  logits: written and read, float32.  evict, not part of the step: the kept
    slots read and written, spread over the steps between two evictions; at most, as slots in place don't move.
    """
    c, rule, needs = target.config, target.rule, target.policy.needs
    data, model = target.mesh.shape[DATA], target.mesh.shape[MODEL]
    item, b = jnp.dtype(target.dtype).itemsize, rows // data
    _, weights, state, parameters = target.arguments(rows)
    assert isinstance(state, DecodeState)
    of_weights = jnp.dtype(target.weights or target.dtype).itemsize
    embedding = 0 if c.tied_head else (c.vocab_size // model - b) * c.d_model * of_weights
    slot = c.kv_bytes(b, 1, item, target.kv) // model
    at_every_token = needs.hidden or needs.inputs
    bulk = target.policy.evicts and not rule.one_out
    return {
        "weights": shard_bytes(weights) - max(0, embedding),
        "policy": shard_bytes(parameters) if at_every_token else 0,
        "kv_read": round(slot * mean_occupancy(target)),
        "kv_written": slot,
        "attention": 2 * c.n_layers * b * (c.n_heads // model) * rule.budget * 4 if needs.attention else 0,
        "logits": 2 * b * (c.vocab_size // model) * 4,
        "evict": 2 * slot * rule.retain // (rule.budget - rule.retain) if bulk else 0,
    }
