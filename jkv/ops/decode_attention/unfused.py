"""decode_attention as three operations: insert, attend, and a second pass over the keys for the weights."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from jkv.ops.insert import insert


def unfused(attend: Callable[..., jax.Array], weigh: Callable[..., jax.Array], name: str) -> Callable[..., Any]:
    """decode_attention from an attention over a buffer that holds the new token already, and from its weights.

    attend: (q, k, v, length, scale) -> out.  weigh: (q, k, length, scale) -> weights.  name: implementation of insert.
    """
    return functools.partial(_run, attend, weigh, name)


def _run(attend, weigh, name, q, k_new, v_new, k, v, slot, length, *, scale: float, weights: bool):
    k, v = insert(k, v, k_new, v_new, slot, implementation=name)
    out = attend(q, k, v, length, scale=scale)
    return out, k, v, weigh(q, k, length, scale=scale) if weights else None
