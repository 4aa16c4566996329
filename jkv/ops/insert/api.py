"""insert: writes a new token's key and value into one slot of each row."""

from jaxtyping import Array, Float, Int32

from jkv.ops import dispatch
from jkv.ops.buffer import Buffer
from jkv.ops.insert import reference, xla

_TABLE = {"xla": xla.insert, "reference": reference.insert, "pallas": dispatch.pallas()}


def insert(
    k: Buffer,
    v: Buffer,
    k_new: Float[Array, "B K H"],
    v_new: Float[Array, "B K H"],
    slot: Int32[Array, "B"] | Int32[Array, "B K"],
    *,
    implementation: str = "auto",
) -> tuple[Buffer, Buffer]:
    """Write `k_new[b]` and `v_new[b]` into slot `slot[b]` (or `slot[b, head]`) of row b.

    A row (or head) whose slot is outside 0..S-1 is left unchanged, so S marks a row without a new token. In place when
    the buffers are donated or loop-carried.

    Args:
      k: the buffer of keys, [B, K, S, H]; an array or int8 (`jkv.ops.buffer.Int8KV`).
      v: the buffer of values, likewise.
      k_new: one key per row and KV head, [B, K, H]; it is cast to the buffer's dtype, or quantised.
      v_new: one value per row and KV head, likewise.
      slot: where they go, int32 [B] (the same slot in every KV head) or [B, K].
      implementation: 'auto', 'xla' or 'reference'. There is no kernel, so 'pallas' can't run.

    Returns:
      (k, v), of the shapes and dtypes given.

    Raises:
      ValueError: the shapes disagree, or the implementation's name is unknown.
      NotImplementedError: the implementation asked for by name can't run here.
    """
    if k.ndim != 4 or k.shape != v.shape or k.dtype != v.dtype:
        raise ValueError(f"k and v must be [B, K, S, H] alike; got {k.shape} {k.dtype} and {v.shape} {v.dtype}")
    rows, heads, _, dim = k.shape
    if k_new.shape != (rows, heads, dim) or v_new.shape != (rows, heads, dim):
        raise ValueError(f"k_new and v_new must be {(rows, heads, dim)}; got {k_new.shape} and {v_new.shape}")
    if slot.shape not in ((rows,), (rows, heads)):
        raise ValueError(f"slot must be [B] = {(rows,)} or [B, K] = {(rows, heads)}; got {slot.shape}")
    return dispatch.run("insert", _TABLE, implementation, k, v, k_new.astype(k.dtype), v_new.astype(v.dtype), slot)
