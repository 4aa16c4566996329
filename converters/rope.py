"""The rotary embedding's part of a Hugging Face config: fields <-> base (theta) and ``RopeScaling``.

transformers 5 writes one field ``rope_parameters``. Earlier versions write ``rope_theta`` and ``rope_scaling`` (with
'type' or 'rope_type'). Both forms are read. The earlier form is written, since every version reads it: an earlier
version would ignore ``rope_parameters``, and rotate by the default base without a warning. Defaults and precedence are
those of ``transformers.modeling_rope_utils`` in transformers 5.
"""

import math
from typing import Any

from converters.fields import Fields
from jkv.errors import UserError
from jkv.models.config import LinearScaling, Llama3Scaling, RopeScaling, YarnScaling

SUPPORTED = ("default", "linear", "llama3", "yarn")
_DEFAULT_THETA = 10000.0


def read_rope(top: Fields, max_positions: int) -> tuple[float, RopeScaling]:
    """The base and the scaling of a config.

    Args:
        top: the whole config.
        max_positions: its max_position_embeddings.

    Raises:
        UserError: a field is malformed, the type isn't one of `SUPPORTED`, or only a part of each head is rotated.
    """
    rope = top.object("rope_scaling") or top.object("rope_parameters") or Fields({}, top.where, "rope_scaling.")
    for fields in (top, rope):
        if fields.present("partial_rotary_factor") and fields.number("partial_rotary_factor") != 1:
            raise fields.error("partial_rotary_factor", "1 (rotating a part of the head isn't supported)")
    theta = rope.number("rope_theta") if "rope_theta" in rope.data else top.number("rope_theta", _DEFAULT_THETA)
    if theta <= 1:
        raise (rope if "rope_theta" in rope.data else top).error("rope_theta", "a number above 1")
    key = "rope_type" if "rope_type" in rope.data else "type"
    match rope.text(key, "default"):
        case "default":
            return theta, None
        case "linear":
            return theta, LinearScaling(rope.number("factor"))
        case "llama3":
            return theta, _llama3(rope, _original(top, rope, max_positions))
        case "yarn":
            return theta, _yarn(rope, _original(top, rope, max_positions), max_positions)
        case _:
            raise rope.error(key, f"one of {', '.join(SUPPORTED)}")


def _original(top: Fields, rope: Fields, max_positions: int) -> int:
    """How many positions the model had before its context was extended."""
    name = "original_max_position_embeddings"
    return top.integer(name) if top.present(name) else rope.integer(name, max_positions)


def _llama3(rope: Fields, original: int) -> Llama3Scaling:
    """Llama 3.1's scaling."""
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    if high <= low:
        raise rope.error("high_freq_factor", f"more than low_freq_factor ({low:g})")
    return Llama3Scaling(rope.number("factor"), low, high, original)


def _yarn(rope: Fields, original: int, max_positions: int) -> YarnScaling:
    """YaRN. The factor on cos and sin is given, or follows from DeepSeek's two mscale fields, or from the factor."""
    factor = rope.number("factor") if rope.present("factor") else max_positions / original
    fast = rope.number("beta_fast") if rope.data.get("beta_fast") else 32.0
    slow = rope.number("beta_slow") if rope.data.get("beta_slow") else 1.0
    if fast < slow:
        raise rope.error("beta_fast", f"at least beta_slow ({slow:g})")
    if rope.present("attention_factor"):
        attention = rope.number("attention_factor")
    elif rope.data.get("mscale") and rope.data.get("mscale_all_dim"):
        attention = _mscale(factor, rope.number("mscale")) / _mscale(factor, rope.number("mscale_all_dim"))
    else:
        attention = _mscale(factor, 1.0)
    truncate = rope.boolean("truncate", True)
    return YarnScaling(factor, original, fast, slow, attention, truncate)


def _mscale(factor: float, weight: float) -> float:
    """YaRN's factor on cos and sin (arXiv:2309.00071, equation 22), with DeepSeek's weight on the logarithm."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def write_rope(theta: float, scaling: RopeScaling) -> dict[str, Any]:
    """The fields ``rope_theta`` and ``rope_scaling``. Raises UserError for a scaling that they can't express."""
    match scaling:
        case None:
            fields = None
        case LinearScaling(factor=factor):
            fields = {"rope_type": "linear", "factor": factor}
        case Llama3Scaling():
            fields = {
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_max_positions,
            }
        case YarnScaling():
            fields = {
                "rope_type": "yarn",
                "factor": scaling.factor,
                "original_max_position_embeddings": scaling.original_max_positions,
                "beta_fast": scaling.beta_fast,
                "beta_slow": scaling.beta_slow,
                "attention_factor": scaling.attention_factor,
                "truncate": scaling.truncate,
            }
        case _:
            raise UserError(f"rope scaling {type(scaling).__name__} has no Hugging Face form")
    return {"rope_theta": theta, "rope_scaling": fields}
