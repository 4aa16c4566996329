"""select: the slots that stay at an eviction, those of highest score, ascending."""

from jaxtyping import Array, Float32, Int32

from jkv.ops import dispatch
from jkv.ops.select import pallas_tpu, reference, xla

_TABLE = {
    "xla": xla.select,
    "reference": reference.select,
    "pallas": dispatch.pallas("select", tpu=pallas_tpu.select),
}


def select(
    scores: Float32[Array, "B l k S"],
    positions: Int32[Array, "B l k S"],
    retain: int,
    *,
    implementation: str = "auto",
) -> Int32[Array, "B l k R"]:
    """The ``retain`` slots of highest score of each row and keep set, ascending by slot.

    Among equal scores the newest position stays, among equal positions too (dead slots) the highest slot. -0.0 and 0.0
    are equal; infinities are scores like others. Every implementation gives the same slots, to the last one.

    Args:
      scores: float32 [B, l, k, S], without NaN. They already carry protection (`jkv.policies.retention.priority`).
      positions: int32 [B, l, k, S], in any order.
      retain: R, how many stay, 1..S.
      implementation: 'auto' (may fall back to XLA), 'xla', 'reference' or 'pallas'.

    Returns:
      int32 [B, l, k, R].

    Raises:
      ValueError: the shapes disagree, retain is outside 1..S, or the implementation's name is unknown.
      NotImplementedError: the implementation asked for by name can't run here.
    """
    if scores.ndim != 4 or scores.shape != positions.shape:
        raise ValueError(f"scores and positions must be [B, l, k, S] alike; got {scores.shape} and {positions.shape}")
    if not 1 <= retain <= scores.shape[-1]:
        raise ValueError(f"retain {retain} is outside 1..{scores.shape[-1]}, the slots there are")
    return dispatch.run("select", _TABLE, implementation, scores, positions, retain)
