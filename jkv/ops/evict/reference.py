"""compact, one slot at a time. For tests; it shares no code with the other implementations."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32


def compact(
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    source: Int32[Array, "B R"] | Int32[Array, "B K R"],
    rows: Bool[Array, "B"],
) -> tuple[Float[Array, "B K S H"], Float[Array, "B K S H"]]:
    old_k, old_v = k, v
    for b in range(k.shape[0]):
        for head in range(k.shape[1]):
            kept = source[b, head] if source.ndim == 3 else source[b]
            for j in range(kept.shape[0]):
                k = k.at[b, head, j].set(jnp.where(rows[b], old_k[b, head, kept[j]], old_k[b, head, j]))
                v = v.at[b, head, j].set(jnp.where(rows[b], old_v[b, head, kept[j]], old_v[b, head, j]))
    return k, v
