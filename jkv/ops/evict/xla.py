"""compact as a loop over the evicting rows: gather one row's kept slots, write them over the row's front."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int32

from jkv.ops.buffer import Buffer, by_part


def compact(
    k: Buffer,
    v: Buffer,
    source: Int32[Array, "B R"] | Int32[Array, "B K R"],
    rows: Bool[Array, "B"],
) -> tuple[Buffer, Buffer]:
    batch, heads, _, _ = k.shape
    row = jnp.arange(batch, dtype=jnp.int32)

    def next_row(after: jax.Array) -> jax.Array:
        return jnp.min(jnp.where(rows & (row > after), row, jnp.int32(batch)))

    def body(state: tuple[jax.Array, Buffer, Buffer]) -> tuple[jax.Array, Buffer, Buffer]:
        b, k, v = state
        kept = lax.dynamic_index_in_dim(source, b, 0, keepdims=False)
        kept = jnp.broadcast_to(kept, (heads, kept.shape[-1]))
        return next_row(b), _move(k, b, kept), _move(v, b, kept)

    _, k, v = lax.while_loop(lambda state: state[0] < batch, body, (next_row(jnp.int32(-1)), k, v))
    return k, v


def _move(buffer: Buffer, b: jax.Array, kept: Int32[Array, "K R"]) -> Buffer:
    head, zero = jnp.arange(kept.shape[0], dtype=jnp.int32)[:, None], jnp.int32(0)

    def move(leaf: jax.Array, *, axis: int) -> jax.Array:
        at = (b, head, kept) if axis == 2 else (b, head, zero, kept)
        # [K, R, H] or [K, R], read before the write below, so overlap is safe.
        front = leaf.at[at].get(mode="clip")
        front = front[None] if axis == 2 else front[None, :, None]
        return lax.dynamic_update_slice(leaf, front, (b, zero, zero, zero))

    return by_part(move, buffer)
