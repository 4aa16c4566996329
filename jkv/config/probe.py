"""The configuration of ``python -m jkv.probe``."""

import dataclasses
from typing import Any

from jkv.errors import UserError
from jkv.policies import Granularity

# The policies that evict and need no trained weights of their own.
_POLICIES = (
    "random", "window", "streaming", "sepllm", "h2o", "snapkv", "rkv", "tova", "knorm", "keydiff",
    "expected_attention", "lazy", "raas", "triattention", "vase", "gkv",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ProbeConfig:
    """Which policies to probe, with what budget, on how many probes."""

    model: str = "demo-llama"
    """model to probe: demo-llama or demo-qwen, or another model with their vocabulary"""
    policies: list[Any] = dataclasses.field(default_factory=lambda: list(_POLICIES))
    """policies to probe, by name; in YAML also mappings, as in {policy: rkv, name: rkv-half, options: {lam: 0.5}}
    (default: all that evict and need no trained weights)"""
    register: list[str] | None = None
    budget: int = 64
    """KV slots of each row"""
    retain: int = 60
    """slots that stay after an eviction"""
    window: int | None = 8
    """newest tokens that are never evicted; null in YAML gives each policy its own"""
    sinks: int | None = None
    pin_prompt: bool = False
    """never evict the prompt's tokens"""
    granularity: Granularity = "shared"
    probes: int = 50
    """probes for each number of variables from 2 to 6"""
    seed: int = 0
    out: str | None = None
    """directory for probe.csv, probe.md, probe.png and probe.svg; must be given"""

    def __post_init__(self):
        if self.probes < 1:
            raise UserError(f"{self.probes} is below 1", where="--probes", mend="give 1 or more")
        if self.out is None:
            raise UserError("the table and the picture need a place", where="--out", mend="give a directory")
