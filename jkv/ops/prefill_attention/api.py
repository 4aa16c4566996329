"""prefill_attention: causal attention within one prompt, for inference."""

from jaxtyping import Array, Float

from jkv.ops import dispatch
from jkv.ops.prefill_attention import pallas_tpu, reference, xla

_TABLE = {
    "xla": xla.prefill_attention,
    "reference": reference.prefill_attention,
    "pallas": dispatch.pallas(tpu=pallas_tpu.prefill_attention),
}


def prefill_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    *,
    implementation: str = "auto",
) -> Float[Array, "B T N H"]:
    """Attention of every token to itself and its predecessors.

    Scores are multiplied by H ** -0.5, and the softmax is in float32. Query head n reads KV head n // G, G = N / K.
    Padding after a prompt needs no mask: no real token attends to it. Not for training, because the TPU kernel has no
    gradient here.

    Args:
      q: queries after RoPE, [B, T, N, H].
      k: keys after RoPE, [B, T, K, H].
      v: values, [B, T, K, H].
      implementation: 'auto' (may fall back to XLA, which holds T x T scores), 'xla', 'reference' or 'pallas'.

    Returns:
      [B, T, N, H] in the dtype of q.

    Raises:
      ValueError: the shapes disagree, or the implementation's name is unknown.
      NotImplementedError: the implementation asked for by name can't run here.
    """
    if k.shape != v.shape or q.ndim != 4 or k.ndim != 4 or q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3]:
        raise ValueError(f"q must be [B, T, N, H], k and v [B, T, K, H]; got {q.shape}, {k.shape} and {v.shape}")
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"{q.shape[2]} query heads do not divide evenly among {k.shape[2]} KV heads")
    return dispatch.run("prefill_attention", _TABLE, implementation, q, k, v)
