"""compact as a loop over the rows that evict: gather one row's slots that stay, write them over the row's front."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int32

from jkv.ops.buffer import Buffer, Stored, by_part


def compact(
    k: Buffer,
    v: Buffer,
    source: Int32[Array, "B R"] | Int32[Array, "B K R"],
    rows: Bool[Array, "B"],
) -> tuple[Buffer, Buffer]:
    """See `jkv.ops.evict.api`."""
    batch, heads, _, _ = k.shape
    row = jnp.arange(batch, dtype=jnp.int32)

    def next_row(after: jax.Array) -> jax.Array:
        """The first row later than ``after`` that evicts; B if there is none."""
        return jnp.min(jnp.where(rows & (row > after), row, jnp.int32(batch)))

    def body(state: tuple[jax.Array, Buffer, Buffer]) -> tuple[jax.Array, Buffer, Buffer]:
        """Move the slots of one row. state: the row, and the buffers."""
        b, k, v = state
        kept = lax.dynamic_index_in_dim(source, b, 0, keepdims=False)
        kept = jnp.broadcast_to(kept, (heads, kept.shape[-1]))
        return next_row(b), _move(k, b, kept), _move(v, b, kept)

    _, k, v = lax.while_loop(lambda state: state[0] < batch, body, (next_row(jnp.int32(-1)), k, v))
    return k, v


def _move(buffer: Buffer, b: jax.Array, kept: Int32[Array, "K R"]) -> Stored:
    """The buffer in which row ``b`` has moved."""
    head, zero = jnp.arange(kept.shape[0], dtype=jnp.int32)[:, None], jnp.int32(0)

    def move(leaf: jax.Array, *, axis: int) -> jax.Array:
        """The same for one of the buffer's arrays, whose slots are on ``axis``."""
        at = (b, head, kept) if axis == 2 else (b, head, zero, kept)
        # [K, R, H] or [K, R]. It is read before the write below, so the two may overlap.
        front = leaf.at[at].get(mode="clip")
        front = front[None] if axis == 2 else front[None, :, None]
        return lax.dynamic_update_slice(leaf, front, (b, zero, zero, zero))

    return by_part(move, buffer)
