"""The configurations of the two demo models, which have about half a million parameters each."""

from typing import Any, Literal

from jkv.demo import tokenizer
from jkv.models.config import ModelConfig

_SHARED: dict[str, Any] = {
    "d_model": 128,
    "n_layers": 3,
    "n_heads": 4,
    "n_kv_heads": 2,
    "head_dim": 32,
    "tied_head": True,
    "max_positions": 512,
}
_VARYING: dict[str, dict[str, Any]] = {
    "llama": {"d_ff": 256, "rope_theta": 1e4, "rms_eps": 1e-5},
    "qwen2": {"d_ff": 320, "rope_theta": 1e6, "qkv_bias": True},
}


def model_config(arch: Literal["llama", "qwen2"]) -> ModelConfig:
    """The configuration of the demo model with this architecture."""
    vocabulary = tokenizer.vocabulary()
    return ModelConfig(
        architecture=arch,
        vocab_size=len(vocabulary),
        bos_id=vocabulary[tokenizer.BOS],
        eos_ids=(vocabulary[tokenizer.EOS],),
        **_SHARED,
        **_VARYING[arch],
    )
