"""The configuration of ``python -m jkv.calibrate``."""

import dataclasses
from typing import Literal

from jkv.errors import UserError


@dataclasses.dataclass(frozen=True)
class CalibrateConfig:
    """What to measure on."""

    model: str = "demo-llama"
    dtype: Literal["float32", "bfloat16"] | None = None
    """of weights and activations (default: float32 on CPU, bfloat16 elsewhere)"""
    task: str = "demo"
    """whose prompts are completed: demo, or FILE.jsonl; not one you evaluate on"""
    limit: int = 32
    """problems at most"""
    max_new_tokens: int = 2048
    """new tokens a completion at most"""
    batch_size: int = 16
    seed: int = 1
    """of all random draws; of the demo's problems, too (0 are the ones it is evaluated on)"""
    out: str | None = None
    """the file to write (default: query_statistics.safetensors beside the model)"""

    def __post_init__(self):
        for name in ("limit", "max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{getattr(self, name)} is below 1", where="--" + name.replace("_", "-"))
