"""compact, one slot at a time. For tests; it shares no code with the other implementations."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32

from jkv.quantized_kv import Buffer, Int8KV


def compact(
    k: Buffer,
    v: Buffer,
    source: Int32[Array, "B R"] | Int32[Array, "B K R"],
    rows: Bool[Array, "B"],
) -> tuple[Buffer, Buffer]:
    if isinstance(k, Int8KV) and isinstance(v, Int8KV):
        values = compact(k.values, v.values, source, rows)
        scales = compact(*(jnp.swapaxes(x.scale, 2, 3) for x in (k, v)), source, rows)
        k, v = (Int8KV(x, jnp.swapaxes(s, 2, 3), k.dtype) for x, s in zip(values, scales, strict=True))
        return k, v
    old_k, old_v = k, v
    for b in range(k.shape[0]):
        for head in range(k.shape[1]):
            kept = source[b, head] if source.ndim == 3 else source[b]
            for j in range(kept.shape[0]):
                k = k.at[b, head, j].set(jnp.where(rows[b], old_k[b, head, kept[j]], old_k[b, head, j]))
                v = v.at[b, head, j].set(jnp.where(rows[b], old_v[b, head, kept[j]], old_v[b, head, j]))
    return k, v
