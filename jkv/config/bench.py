"""The configuration of ``python -m jkv.bench``."""

import dataclasses

from jkv.errors import UserError


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """A random Llama and a load for it; the defaults are the comparison that the README quotes."""

    layers: int = 12
    """L"""
    d_model: int = 512
    """D"""
    heads: int = 8
    """N"""
    kv_heads: int = 4
    """K"""
    d_ff: int = 1376
    """F"""
    vocab: int = 4096
    """V"""
    batch_size: int = 8
    """prompts decoded together"""
    prompt_tokens: int = 64
    """tokens of each prompt"""
    new_tokens: int = 1024
    """tokens each of them is continued by"""
    budget: int = 256
    """KV slots of jkv's budgeted contestant"""
    policy: str = "window"
    """its eviction policy"""
    policies: bool = False
    """compare the cost of all policies instead; needs no PyTorch"""
    only: list[str] | None = None
    """with --policies: these, and window"""
    turns: int = 5
    """how often each contestant runs, after one warm-up"""
    json: str | None = None
    """also write the figures to this file"""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and not isinstance(value, bool) and value < 1:
                raise UserError(f"{value} is below 1", where="--" + field.name.replace("_", "-"), mend="give 1 or more")
