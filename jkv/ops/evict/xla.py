"""compact as a loop over the evicting rows: gather one row's kept slots, write them over the row's front."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int32


def compact(
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    source: Int32[Array, "B R"] | Int32[Array, "B K R"],
    rows: Bool[Array, "B"],
) -> tuple[Float[Array, "B K S H"], Float[Array, "B K S H"]]:
    batch, heads, _, _ = k.shape
    row = jnp.arange(batch, dtype=jnp.int32)

    def next_row(after: jax.Array) -> jax.Array:
        return jnp.min(jnp.where(rows & (row > after), row, jnp.int32(batch)))

    def body(state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        b, k, v = state
        kept = lax.dynamic_index_in_dim(source, b, 0, keepdims=False)
        kept = jnp.broadcast_to(kept, (heads, kept.shape[-1]))
        return next_row(b), _move(k, b, kept), _move(v, b, kept)

    _, k, v = lax.while_loop(lambda state: state[0] < batch, body, (next_row(jnp.int32(-1)), k, v))
    return k, v


def _move(buffer: Float[Array, "B K S H"], b: jax.Array, kept: Int32[Array, "K R"]) -> Float[Array, "B K S H"]:
    head = jnp.arange(kept.shape[0], dtype=jnp.int32)[:, None]
    front = buffer.at[b, head, kept].get(mode="clip")  # [K, R, H]: read before the write below, so overlap is safe
    zero = jnp.int32(0)
    return lax.dynamic_update_slice(buffer, front[None], (b, zero, zero, zero))
