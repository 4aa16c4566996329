"""decode_attention as separate operations: insert, attend, and a second pass over the keys for the weights."""

import functools
from collections.abc import Callable

import jax

from jkv.ops.buffer import Buffer
from jkv.ops.insert import insert

Result = tuple[jax.Array, Buffer, Buffer, jax.Array | None]  # the fields of DecodeAttention


def unfused(attend: Callable[..., jax.Array], weigh: Callable[..., jax.Array], insertion: str) -> Callable[..., Result]:
    """An implementation of decode_attention, from an attention that finds the new token in the buffer.

    Args:
      attend: (q, k, v, length, scale) -> out.
      weigh: (q, k, length, scale) -> weights.
      insertion: the implementation of `jkv.ops.insert` that inserts the new token.
    """
    return functools.partial(_run, attend, weigh, insertion)


def _run(
    attend: Callable[..., jax.Array],
    weigh: Callable[..., jax.Array],
    insertion: str,
    q: jax.Array,
    k_new: jax.Array,
    v_new: jax.Array,
    k: Buffer,
    v: Buffer,
    slot: jax.Array,
    length: jax.Array,
    *,
    scale: float,
    weights: bool,
) -> Result:
    k, v = insert(k, v, k_new, v_new, slot, implementation=insertion)
    out = attend(q, k, v, length, scale=scale)
    return out, k, v, weigh(q, k, length, scale=scale) if weights else None
