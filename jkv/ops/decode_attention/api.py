"""decode_attention: inserts each row's new token into the KV buffer, and attends to the row's occupied slots."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from jkv.ops import dispatch
from jkv.ops.buffer import Buffer
from jkv.ops.decode_attention import pallas_gpu, pallas_tpu, reference, xla
from jkv.ops.decode_attention.unfused import unfused

_TABLE = {
    "xla": unfused(xla.decode_attention, xla.attention_weights, "xla"),
    "reference": unfused(reference.decode_attention, reference.attention_weights, "reference"),
    "pallas": dispatch.pallas(tpu=pallas_tpu.decode_attention, gpu=pallas_gpu.decode_attention),
}


class DecodeAttention(NamedTuple):
    """What `decode_attention` returns.

    Attributes:
      out: the attention's output, in the dtype of the queries.
      k: the buffer of keys, with the new token's.
      v: the buffer of values, with the new token's.
      weights: the softmax weight of every slot, float32, 0 at dead slots; None unless asked for.
    """

    out: Float[Array, "B N H"]
    k: Buffer
    v: Buffer
    weights: Float[Array, "B N S"] | None


def decode_attention(
    q: Float[Array, "B N H"],
    k_new: Float[Array, "B K H"],
    v_new: Float[Array, "B K H"],
    k: Buffer,
    v: Buffer,
    slot: Int32[Array, "B"] | Int32[Array, "B K"],
    length: Int32[Array, "B"],
    *,
    scale: float | None = None,
    weights: bool = False,
    implementation: str = "auto",
) -> DecodeAttention:
    """Write each row's new key and value into its slot, then attend to the row's first `length[b]` slots.

    Query head n reads KV head n // G, where G = N / K. The softmax is in float32. The order of slots doesn't matter,
    because keys are cached after RoPE. Slots at or past the length may hold anything, NaN included. A row of length 0
    returns zeros. In place when the buffers are donated or loop-carried.

    On CPU in float32 a row's result depends on that row alone: its bits are the same at any B and beside any rows.

    Args:
      q: one query per row and query head, after RoPE, [B, N, H].
      k_new: one key per row and KV head, after RoPE, [B, K, H]. It is cast to the buffer's dtype, or quantised, and
        attended to as it is stored.
      v_new: one value per row and KV head, likewise.
      k: the buffer of keys, [B, K, S, H]; an array or int8 (`jkv.ops.buffer.Int8KV`).
      v: the buffer of values, likewise.
      slot: where the new token goes, int32 [B] (the same slot in every KV head) or [B, K]: one of the row's first
        `length` slots. Any other number writes nothing.
      length: occupied slots of each row, the new token's included, int32 [B], each in 0..S.
      scale: what scores are multiplied by; None means H ** -0.5.
      weights: whether to return the softmax weights, too. The Pallas kernels write out their scores on the way; XLA
        makes a second pass over the keys.
      implementation: 'auto' (may fall back to XLA), 'xla', 'reference' or 'pallas'.

    Raises:
      ValueError: the shapes or dtypes disagree, or the implementation's name is unknown.
      NotImplementedError: the implementation asked for by name can't run here.
    """
    if k.shape != v.shape or k.dtype != v.dtype:
        raise ValueError(f"k and v must be alike; got {k.shape} {k.dtype} and {v.shape} {v.dtype}")
    if q.ndim != 3 or k.ndim != 4 or q.shape[0] != k.shape[0] or q.shape[2] != k.shape[3]:
        raise ValueError(f"q must be [B, N, H] and k [B, K, S, H]; got {q.shape} and {k.shape}")
    rows, heads, slots, dim = k.shape
    if q.shape[1] % heads:
        raise ValueError(f"{q.shape[1]} query heads do not divide evenly among {heads} KV heads")
    if k_new.shape != (rows, heads, dim) or v_new.shape != (rows, heads, dim):
        raise ValueError(f"k_new and v_new must be {(rows, heads, dim)}; got {k_new.shape} and {v_new.shape}")
    if slot.shape not in ((rows,), (rows, heads)):
        raise ValueError(f"slot must be [B] = {(rows,)} or [B, K] = {(rows, heads)}; got {slot.shape}")
    if length.shape != (rows,):
        raise ValueError(f"length must be [B] = {(rows,)}; got {length.shape}")
    scale = dim**-0.5 if scale is None else scale
    occupied = length if slot.ndim == 1 else length[:, None]
    slot = jnp.where((slot >= 0) & (slot < occupied), slot, slots)
    found = dispatch.run(
        "decode_attention", _TABLE, implementation, q, k_new, v_new, k, v, slot, length, scale=scale, weights=weights
    )
    return DecodeAttention(*found)
