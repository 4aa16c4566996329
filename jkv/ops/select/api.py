"""select: which slots stay at an eviction: those of highest score."""

from jaxtyping import Array, Float32, Int32

from jkv.ops import dispatch
from jkv.ops.select import pallas_tpu, reference, xla

_TABLE = {
    "xla": xla.select,
    "reference": reference.select,
    "pallas": dispatch.pallas(tpu=pallas_tpu.select),
}


def select(
    scores: Float32[Array, "B l k S"],
    positions: Int32[Array, "B l k S"],
    retain: int,
    *,
    implementation: str = "auto",
) -> Int32[Array, "B l k R"]:
    """The ``retain`` slots of highest score in each row and keep set.

    Of equal scores the newest position stays; where positions are equal, too (dead slots), the highest slot. -0.0, 0.0
    and subnormals are all equal; infinities are scores like any other. All implementations give the same slots.

    Args:
      scores: float32 [B, l, k, S], without NaN. Protected slots must have the highest (`jkv.engine.priority.priority`).
      positions: the position of each slot's token, int32 [B, l, k, S], in any order.
      retain: R, how many slots stay, 1..S.
      implementation: 'auto' (may fall back to XLA), 'xla', 'reference' or 'pallas'.

    Returns:
      The slots, int32 [B, l, k, R], ascending along R.

    Raises:
      ValueError: the shapes disagree, retain is outside 1..S, or the implementation's name is unknown.
      NotImplementedError: the implementation asked for by name can't run here.
    """
    if scores.ndim != 4 or scores.shape != positions.shape:
        raise ValueError(f"scores and positions must be [B, l, k, S] alike; got {scores.shape} and {positions.shape}")
    if not 1 <= retain <= scores.shape[-1]:
        raise ValueError(f"retain is {retain}, outside 1..{scores.shape[-1]}, the number of slots")
    return dispatch.run("select", _TABLE, implementation, scores, positions, retain)
