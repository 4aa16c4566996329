"""compact: in a bulk eviction, moves the slots that stay to the front of the buffer."""

from jaxtyping import Array, Bool, Int32

from jkv.ops import dispatch
from jkv.ops.buffer import Buffer
from jkv.ops.evict import pallas_tpu, reference, xla

_TABLE = {
    "xla": xla.compact,
    "reference": reference.compact,
    "pallas": dispatch.pallas(tpu=pallas_tpu.compact),
}


def compact(
    k: Buffer,
    v: Buffer,
    source: Int32[Array, "B R"] | Int32[Array, "B K R"],
    rows: Bool[Array, "B"],
    *,
    implementation: str = "auto",
) -> tuple[Buffer, Buffer]:
    """Move the slots that stay to slots 0..R-1, in each row that evicts.

    In a row with `rows[b]`, slot j < R receives what slot `source[..., j]` held, bit for bit; the slots from R on are
    dead and may hold anything. Other rows are neither read nor written (if no row evicts, the TPU kernel writes one
    block back unchanged). In place when the buffers are donated or loop-carried: the largest temporary is one row's R
    slots.

    Args:
      k: the buffer of keys, [B, K, S, H]; an array or int8 (`jkv.ops.buffer.Int8KV`), whose scales move along.
      v: the buffer of values, likewise.
      source: the slots that stay, int32 [B, R] (the same in every KV head) or [B, K, R]; ascending along R, within
        0..S-1, R <= S. Entries of rows that don't evict are ignored.
      rows: which rows evict, bool [B].
      implementation: 'auto', 'xla', 'reference' or 'pallas'.

    Returns:
      (k, v), of the shapes and dtypes given.

    Raises:
      ValueError: the shapes disagree, or the implementation's name is unknown.
      NotImplementedError: the implementation asked for by name can't run here.
    """
    if k.ndim != 4 or k.shape != v.shape or k.dtype != v.dtype:
        raise ValueError(f"k and v must be [B, K, S, H] alike; got {k.shape} {k.dtype} and {v.shape} {v.dtype}")
    if source.ndim not in (2, 3) or source.shape[:-1] != k.shape[: source.ndim - 1]:
        raise ValueError(f"source must be [B, R] or [B, K, R] beside {k.shape}; got {source.shape}")
    if source.shape[-1] > k.shape[2]:
        raise ValueError(f"source keeps {source.shape[-1]} slots of a buffer of {k.shape[2]}")
    if rows.shape != k.shape[:1]:
        raise ValueError(f"rows must be [B] = {k.shape[:1]}; got {rows.shape}")
    return dispatch.run("compact", _TABLE, implementation, k, v, source, rows)
