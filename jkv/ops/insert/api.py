"""insert: the new token's key and value overwrite one slot of each row."""

from jaxtyping import Array, Float, Int32

from jkv.ops import dispatch
from jkv.ops.buffer import Buffer
from jkv.ops.insert import reference, xla

_TABLE = {"xla": xla.insert, "reference": reference.insert, "pallas": dispatch.pallas("insert")}


def insert(
    k: Buffer,
    v: Buffer,
    k_new: Float[Array, "B K H"],
    v_new: Float[Array, "B K H"],
    slot: Int32[Array, "B"] | Int32[Array, "B K"],
    *,
    implementation: str = "auto",
) -> tuple[Buffer, Buffer]:
    """Writes `k_new[b]`, `v_new[b]` into slot `slot[b]` (or `slot[b, head]`) of row b, in place if donated or carried.

    A row (or head) whose slot is outside 0..S-1 is left as it is, so S marks a row that has nothing to write.

    Args:
      k, v: the buffers, [B, K, S, H]; arrays or int8 (`jkv.ops.buffer.Int8KV`).
      k_new, v_new: one token per row, [B, K, H]; cast to the buffers' dtype, or quantised.
      slot: int32, [B] (every KV head alike) or [B, K].
      implementation: 'auto', 'xla', 'reference' or 'pallas'.

    Returns:
      (k, v), shaped as given.

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
