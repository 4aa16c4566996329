"""The configuration of ``python -m jkv.calibrate``."""

import dataclasses
from typing import Literal

from jkv.errors import UserError


@dataclasses.dataclass(frozen=True)
class CalibrateConfig:
    """The model, and the prompts that its queries are measured on."""

    model: str = "demo-llama"
    dtype: Literal["float32", "bfloat16"] | None = None
    """data type of weights and activations (default: float32 on CPU, bfloat16 elsewhere)"""
    task: str = "demo"
    """task whose prompts are completed: demo, or FILE.jsonl; not one that you evaluate on"""
    limit: int = 32
    """largest number of problems"""
    max_new_tokens: int = 2048
    """largest number of new tokens in a completion"""
    batch_size: int = 16
    seed: int = 1
    """seed of all random draws, those of the demo's problems included; 0 gives the problems that the demo is evaluated
    on"""
    out: str | None = None
    """file to write (default: query_statistics.safetensors in the model's directory)"""

    def __post_init__(self):
        for name in ("limit", "max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{getattr(self, name)} is below 1", where="--" + name.replace("_", "-"))
