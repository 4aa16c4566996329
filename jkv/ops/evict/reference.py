"""compact, one slot at a time. For tests; it shares no code with the others."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32

from jkv.ops.buffer import Buffer, Int8KV


def compact(
    k: Buffer,
    v: Buffer,
    source: Int32[Array, "B R"] | Int32[Array, "B K R"],
    rows: Bool[Array, "B"],
) -> tuple[Buffer, Buffer]:
    """See `jkv.ops.evict.api`."""
    return _front(k, source, rows), _front(v, source, rows)


def _front(buffer: Buffer, source: jax.Array, rows: jax.Array) -> Buffer:
    if isinstance(buffer, Int8KV):
        scale = jnp.swapaxes(_moved(jnp.swapaxes(buffer.scale, 2, 3), source, rows), 2, 3)
        return Int8KV(_moved(buffer.values, source, rows), scale, buffer.dtype)
    return _moved(buffer, source, rows)


def _moved(old: jax.Array, source: jax.Array, rows: jax.Array) -> jax.Array:
    new = old
    for b in range(old.shape[0]):
        for head in range(old.shape[1]):
            kept = source[b, head] if source.ndim == 3 else source[b]
            for j in range(kept.shape[0]):
                new = new.at[b, head, j].set(jnp.where(rows[b], old[b, head, kept[j]], old[b, head, j]))
    return new
