"""The configuration of ``python -m jkv.plan``: the options of decode that change its programs, and the TPU to compile
for."""

import dataclasses
from typing import Any, Literal

from jkv.config.decode import DecodeConfig
from jkv.errors import UserError
from jkv.policies import Granularity


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    """What to compile, and for which devices."""

    model: str = "r1-llama-8b"
    """model to plan for: r1-llama-70b, r1-llama-8b, r1-qwen-1.5b, r1-qwen-14b, r1-qwen-32b, r1-qwen-7b, demo-llama,
    demo-qwen, or a Hugging Face or converted directory"""
    topology: str = "v5e:2x4"
    """TPU to compile for: v5e:2x4, v6e:2x2, v5p:2x2x1 and so on"""
    mesh: str = "data=1,model=8"
    """how the TPU's chips share the work, as data=ROWS,model=HEADS; auto chooses the sizes"""
    batch_size: int = 32
    policy: str = "dynts"
    budget: int | None = None
    """KV slots of each row; must be given (policy full: tokens of the longest sequence)"""
    window: int | None = None
    ratio: float | None = None
    retain: int | None = None
    sinks: int | None = None
    pin_prompt: bool | None = None
    granularity: Granularity = "shared"
    options: dict[str, Any] | None = None
    register: list[str] | None = None
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """data type of weights, activations and KV buffer"""
    weights: Literal["int8"] | None = None
    kv: Literal["int8"] | None = None
    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 20
    implementation: Literal["auto", "xla", "pallas"] = "auto"
    max_batch: bool = True
    """also search for the largest batch that fits, which takes a few more compilations"""
    json: bool = False
    """print one JSON object instead of a table"""

    def decode(self) -> DecodeConfig:
        """The options that ``python -m jkv.decode`` has, too, as its configuration, all but the mesh.

        Raises:
            UserError: the budget is missing, or decode would refuse an option.
        """
        if self.budget is None:
            raise UserError(
                "is missing", where="--budget", mend="give the KV slots of a row (full: its longest sequence)"
            )
        common = {field.name for field in dataclasses.fields(DecodeConfig)} - {"mesh"}
        options = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name in common}
        return DecodeConfig(**options)
