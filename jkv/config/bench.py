"""The configuration of ``python -m jkv.bench``."""

import dataclasses

from jkv.errors import UserError


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """A random Llama and what it decodes. The defaults are the comparison in docs/performance.md."""

    layers: int = 12
    """decoder layers (L)"""
    d_model: int = 512
    """width of the model (D)"""
    heads: int = 8
    """query heads (N)"""
    kv_heads: int = 4
    """KV heads (K)"""
    d_ff: int = 1376
    """width of the feed-forward layers (F)"""
    vocab: int = 4096
    """tokens in the vocabulary (V)"""
    batch_size: int = 8
    """prompts decoded together"""
    prompt_tokens: int = 64
    """tokens in each prompt"""
    new_tokens: int = 1024
    """new tokens for each prompt"""
    budget: int = 256
    """KV slots of each row, where jkv decodes within a budget"""
    policy: str = "window"
    """eviction policy, where jkv decodes within a budget"""
    policies: bool = False
    """compare the cost of the eviction policies instead; needs no PyTorch"""
    only: list[str] | None = None
    """with --policies: measure window and these policies only (default: all)"""
    turns: int = 5
    """measured runs of each contestant, after one warm-up"""
    json: str | None = None
    """JSON file to write the figures to, besides printing them"""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and not isinstance(value, bool) and value < 1:
                raise UserError(f"{value} is below 1", where="--" + field.name.replace("_", "-"), mend="give 1 or more")
