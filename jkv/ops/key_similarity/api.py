"""key_similarity: how redundant each key is, for the policies R-KV and G-KV."""

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
    """For each key j, the mean over the row's keys i of the cosine similarity of i and j, with two exceptions.

    A key's similarity with itself counts as 0. And for each key i, its similarity with the newest of the keys that are
    similar to it (cosine above ``threshold``) counts as 0. So the newest key of a cluster of similar keys isn't
    redundant by them. Norms have 1e-8 added, so a zero key is similar to none.

    Only the reference holds an array of S x S. Slots at or past the length may hold anything, NaN included; their
    result is 0.

    Args:
      keys: [B, K, S, H].
      positions: the position of each slot's token, int32 [B, k, S], k = 1 or K; not negative, and distinct within the
        occupied slots, in any order.
      length: occupied slots of each row, int32 [B], each in 0..S.
      threshold: the cosine above which keys are similar, 0..1.
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
