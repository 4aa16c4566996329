"""decode_attention and attention_weights: one query per row over the occupied slots of the KV buffer."""

from jaxtyping import Array, Float, Int32

from jkv.ops import dispatch
from jkv.ops.decode_attention import reference, xla

_TABLE = {
    "xla": xla.decode_attention,
    "reference": reference.decode_attention,
    "pallas": dispatch.pallas("decode_attention"),
}
_WEIGHTS_TABLE = {
    "xla": xla.attention_weights,
    "reference": reference.attention_weights,
    "pallas": dispatch.pallas("attention_weights"),
}


def decode_attention(
    q: Float[Array, "B N H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    length: Int32[Array, "B"],
    *,
    scale: float | None = None,
    implementation: str = "auto",
) -> Float[Array, "B N H"]:
    """Attends from one query token per row to the first `length[b]` slots of row b.

    Query head n reads KV head n // G, where G = N / K. Softmax is in float32; slot order does not matter, because keys
    are cached after RoPE. Slots at or past the length may hold anything, NaN included. A row of length 0 returns zeros.

    On CPU in float32 a row's result depends on that row alone: it is bit-equal at any B, in any row, beside any rows.

    Args:
      q: queries, [B, N, H].
      k: keys, [B, K, S, H].
      v: values, [B, K, S, H], of the dtype of k.
      length: occupied slots of each row, int32 [B], each in 0..S.
      scale: multiplies the scores; None means H ** -0.5.
      implementation: 'auto' (may fall back to XLA), 'xla', 'reference' or 'pallas'.

    Returns:
      [B, N, H] in the dtype of q.

    Raises:
      ValueError: the shapes or dtypes disagree, or the implementation's name is unknown.
      NotImplementedError: the implementation asked for by name can't run here.
    """
    if k.shape != v.shape or k.dtype != v.dtype:
        raise ValueError(f"k and v differ: {k.shape} {k.dtype} and {v.shape} {v.dtype}")
    _check(q, k, length)
    scale = q.shape[2] ** -0.5 if scale is None else scale
    return dispatch.run("decode_attention", _TABLE, implementation, q, k, v, length, scale=scale)


def attention_weights(
    q: Float[Array, "B N H"],
    k: Float[Array, "B K S H"],
    length: Int32[Array, "B"],
    *,
    scale: float | None = None,
    implementation: str = "auto",
) -> Float[Array, "B N S"]:
    """The softmax weights that `decode_attention` gives each slot: float32 [B, N, S], zero at dead slots.

    Arguments and errors are those of `decode_attention`. A second pass over the keys: call it only where a policy asks.
    """
    _check(q, k, length)
    scale = q.shape[2] ** -0.5 if scale is None else scale
    return dispatch.run("attention_weights", _WEIGHTS_TABLE, implementation, q, k, length, scale=scale)


def _check(q: Float[Array, "..."], k: Float[Array, "..."], length: Int32[Array, "..."]) -> None:
    if q.ndim != 3 or k.ndim != 4 or q.shape[0] != k.shape[0] or q.shape[2] != k.shape[3]:
        raise ValueError(f"q must be [B, N, H] and k [B, K, S, H]; got {q.shape} and {k.shape}")
    if q.shape[1] % k.shape[1]:
        raise ValueError(f"{q.shape[1]} query heads do not divide into {k.shape[1]} KV heads")
    if length.shape != q.shape[:1]:
        raise ValueError(f"length must be [B] = {q.shape[:1]}; got {length.shape}")
