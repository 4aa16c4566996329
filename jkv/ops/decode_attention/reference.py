"""decode_attention in float32, one head at a time. For tests; it shares no code with the other attentions.

Inserting the new token is insert's reference (`jkv.ops.decode_attention.unfused`).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from jkv.ops.buffer import Buffer, Int8KV


def decode_attention(
    q: Float[Array, "B N H"],
    k: Buffer,
    v: Buffer,
    length: Int32[Array, "B"],
    *,
    scale: float,
) -> Float[Array, "B N H"]:
    """Attention over each row's first ``length`` slots, which hold the new token already."""
    rows, heads, _ = q.shape
    group = heads // k.shape[1]
    out = []
    for b in range(rows):
        live = jnp.arange(k.shape[2], dtype=jnp.int32) < length[b]
        for n in range(heads):
            keys = jnp.where(live[:, None], _head(k, b, n // group), 0.0)
            values = jnp.where(live[:, None], _head(v, b, n // group), 0.0)
            score = jnp.sum(keys * q[b, n].astype(jnp.float32)[None, :], axis=1) * jnp.float32(scale)
            weight = jax.nn.softmax(score, where=live)
            out.append(jnp.sum(weight[:, None] * values, axis=0) * (length[b] > 0).astype(jnp.float32))
    return jnp.stack(out).reshape(q.shape).astype(q.dtype)


def attention_weights(
    q: Float[Array, "B N H"], k: Buffer, length: Int32[Array, "B"], *, scale: float
) -> Float[Array, "B N S"]:
    """The softmax weights of the slots, float32, 0 at dead ones."""
    rows, heads, _ = q.shape
    group = heads // k.shape[1]
    out = []
    for b in range(rows):
        live = jnp.arange(k.shape[2], dtype=jnp.int32) < length[b]
        for n in range(heads):
            keys = jnp.where(live[:, None], _head(k, b, n // group), 0.0)
            score = jnp.sum(keys * q[b, n].astype(jnp.float32)[None, :], axis=1) * jnp.float32(scale)
            out.append(jnp.where(live, jax.nn.softmax(score, where=live), 0.0))
    return jnp.stack(out).reshape(rows, heads, -1)


def _head(buffer: Buffer, b: int, head: int) -> Float[Array, "S H"]:
    if isinstance(buffer, Int8KV):
        return buffer.values[b, head].astype(jnp.float32) * buffer.scale[b, head, 0][:, None]
    return buffer[b, head].astype(jnp.float32)
