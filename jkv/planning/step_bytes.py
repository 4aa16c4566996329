"""The bytes that each device has to move in a decode step, part by part.

Divided by the bandwidth of the device's memory they are the shortest time that a step can take: the roofline.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jkv.ops.sharding import DATA, MODEL
from jkv.planning.compile import Target


def shard_bytes(tree: Any) -> int:
    """Bytes on each device of a pytree of arrays, or of shapes with their sharding.

    TPUs store arrays in tiles; what that adds to a shape is not counted.
    """
    sizes = (math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))
    return sum(sizes)


def kv_bytes(target: Target, rows: int) -> int:
    """Bytes on each device of the key and value buffers of ``rows`` rows; of int8 buffers the scales, too."""
    whole = target.config.kv_bytes(rows, target.rule.budget, jnp.dtype(target.dtype).itemsize, target.kv)
    return whole // target.mesh.size


def mean_occupancy(target: Target) -> float:
    """Slots of a row that a step reads, on average.

    Between two evictions they grow from retain + 1 to budget. Where nothing is evicted, or one token in every step, it
    is the budget: a full cache is counted as if it were full from the start.
    """
    rule = target.rule
    if not target.policy.evicts or rule.one_out:
        return float(rule.budget)
    return (rule.retain + 1 + rule.budget) / 2


def step_bytes(target: Target, rows: int) -> dict[str, int]:
    """The bytes that each device has to move in a decode step, at the mean occupancy.

    Args:
        target: the run.
        rows: the batch size.

    Returns:
        Bytes by part:

        - weights: each is read once; of the embedding only the rows' own tokens, unless it is the head, too.
        - policy: its parameters, if it reads them at every token.
        - kv_read: the occupied slots.
        - kv_written: one slot a row.
        - attention: the attention weights, float32, written and read, if the policy asks for them.
        - logits: float32, written and read.
        - evict: the slots that a bulk eviction keeps, read and written, divided by the steps between two evictions.
          An upper bound, as slots that are in their place already don't move. Not every step evicts, so this is not
          part of the step that the roofline is made of.

    Raises:
        UserError: the mesh can't share the model or the rows evenly.
    """
    c, rule, needs = target.config, target.rule, target.policy.needs
    data, model = target.mesh.shape[DATA], target.mesh.shape[MODEL]
    item, b = jnp.dtype(target.dtype).itemsize, rows // data
    _, weights, _, parameters = target.arguments(rows)
    weight_item = jnp.dtype(target.weights or target.dtype).itemsize
    unread = 0 if c.tied_head else (c.vocab_size // model - b) * c.d_model * weight_item  # of the embedding
    slot = c.kv_bytes(b, 1, item, target.kv) // model
    at_every_token = needs.hidden or needs.inputs
    bulk = target.policy.evicts and not rule.one_out
    return {
        "weights": shard_bytes(weights) - max(0, unread),
        "policy": shard_bytes(parameters) if at_every_token else 0,
        "kv_read": round(slot * mean_occupancy(target)),
        "kv_written": slot,
        "attention": 2 * c.n_layers * b * (c.n_heads // model) * rule.budget * 4 if needs.attention else 0,
        "logits": 2 * b * (c.vocab_size // model) * 4,
        "evict": 2 * slot * rule.retain // (rule.budget - rule.retain) if bulk else 0,
    }
