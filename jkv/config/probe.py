"""The configuration of ``python -m jkv.probe``."""

import dataclasses
from typing import Any

from jkv.errors import UserError
from jkv.policies import Granularity

# What the package can run without weights of a policy's own.
_POLICIES = (
    "random", "window", "streaming", "sepllm", "h2o", "snapkv", "rkv", "tova", "knorm", "keydiff",
    "expected_attention", "lazy", "raas", "triattention", "vase", "gkv",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ProbeConfig:
    """Which policies, in what budget, on how many probes."""

    model: str = "demo-llama"
    """demo-llama or demo-qwen, or another that knows their words"""
    policies: list[Any] = dataclasses.field(default_factory=lambda: list(_POLICIES))
    """names; in YAML also mappings, as in {policy: rkv, name: rkv-half, options: {lam: 0.5}}"""
    register: list[str] | None = None
    budget: int = 64
    retain: int = 60
    window: int | None = 8
    sinks: int | None = None
    pin_prompt: bool = False
    granularity: Granularity = "shared"
    probes: int = 50
    """for each number of variables, 2 to 6"""
    seed: int = 0
    out: str | None = None
    """directory for probe.csv, probe.md, probe.png and probe.svg"""

    def __post_init__(self):
        if self.probes < 1:
            raise UserError(f"{self.probes} is below 1", where="--probes", mend="give 1 or more")
        if self.out is None:
            raise UserError("the table and the picture need a place", where="--out", mend="give a directory")
