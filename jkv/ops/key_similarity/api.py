"""key_similarity: how much a key says what the others say, the newest of those like it excepted (R-KV, G-KV)."""

from jaxtyping import Array, Float, Float32, Int32

from jkv.ops import dispatch
from jkv.ops.key_similarity import pallas_tpu, reference, xla

_TABLE = {
    "xla": xla.key_similarity,
    "reference": reference.key_similarity,
    "pallas": dispatch.pallas(tpu=pallas_tpu.key_similarity),
}


def key_similarity(
    keys: Float[Array, "B K S H"],
    positions: Int32[Array, "B k S"],
    length: Int32[Array, "B"],
    *,
    threshold: float,
    implementation: str = "auto",
) -> Float32[Array, "B K S"]:
    """For each key, the mean over the row's keys of their cosine similarity with it.

    A key's similarity with itself counts as 0. So does, for each key that points, that with the newest of the keys
    similar to it (cosine above ``threshold``): of a cluster, the newest is spared. A key that resembles none spares
    none. Norms have 1e-8 added, so a zero key resembles none.

    No array of S x S exists. Slots at or past the length may hold anything, NaN included; they get 0.

    Args:
      keys: [B, K, S, H].
      positions: int32 [B, k, S], k = 1 or K; not negative and distinct within the occupied slots, in any order.
      length: occupied slots of each row, int32 [B], each in 0..S.
      threshold: cosine above which keys are similar, 0..1.
      implementation: 'auto' (may fall back to XLA), 'xla', 'reference' or 'pallas'.

    Returns:
      float32 [B, K, S].

    Raises:
      ValueError: the shapes disagree, or the implementation's name is unknown.
      NotImplementedError: the implementation asked for by name can't run here.
    """
    if keys.ndim != 4:
        raise ValueError(f"keys must be [B, K, S, H]; got {keys.shape}")
    rows, heads, slots, _ = keys.shape
    if positions.shape not in ((rows, 1, slots), (rows, heads, slots)):
        raise ValueError(f"positions must be [B, 1, S] or [B, K, S] beside {keys.shape}; got {positions.shape}")
    if length.shape != (rows,):
        raise ValueError(f"length must be [B] = {(rows,)}; got {length.shape}")
    return dispatch.run("key_similarity", _TABLE, implementation, keys, positions, length, threshold=threshold)
