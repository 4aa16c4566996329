"""Tiny random checkpoints written by transformers itself, and jkv engines over them."""

import dataclasses
import pathlib
from typing import Any

import torch
import transformers

from tests.support.requests import complete, prompts

__all__ = ["FAMILY", "LLAMA3", "QWEN3_G1", "YARN", "Tiny", "complete", "prompts"]

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}


@dataclasses.dataclass(frozen=True)
class Tiny:
    """A family member: its transformers classes, KV heads and group size G, and what else its config says."""

    name: str
    kind: str
    n_kv_heads: int
    group: int
    options: tuple[tuple[str, Any], ...] = ()
    vocabulary: int = 97

    def build(self, seed: int = 0) -> Any:
        """A random transformers model whose every parameter (biases and norms too) matters. N*H != D."""
        config_class, model_class = {
            "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
            "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
            "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
        }[self.kind]
        config = config_class(
            vocab_size=self.vocabulary, hidden_size=40, intermediate_size=72, num_hidden_layers=2, head_dim=12,
            num_attention_heads=self.n_kv_heads * self.group, num_key_value_heads=self.n_kv_heads,
            max_position_embeddings=512, bos_token_id=1, eos_token_id=2, attn_implementation="eager",
            **dict(self.options),
        )  # fmt: skip
        torch.manual_seed(seed)
        model = model_class(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name:
                    parameter.uniform_(0.5, 1.5)
                elif "embed" in name:
                    parameter.normal_(0, 0.5)
                else:
                    parameter.normal_(0, 0.2)
        return model

    def save(self, directory: pathlib.Path, seed: int = 0) -> Any:
        """Build, write as safetensors, return the transformers model."""
        model = self.build(seed)
        model.save_pretrained(directory)
        return model


FAMILY = (
    Tiny("llama3-g4", "llama", 2, 4, (("rope_parameters", LLAMA3),)),
    Tiny("llama-tied-g1", "llama", 4, 1, (("tie_word_embeddings", True), ("attention_bias", True), ("mlp_bias", True))),
    Tiny("qwen2-g7", "qwen2", 1, 7),
    Tiny("qwen2-yarn-tied-g2", "qwen2", 2, 2, (("rope_parameters", YARN), ("tie_word_embeddings", True))),
    Tiny("qwen3-g2", "qwen3", 2, 2),
)

# No query heads share a KV head, and layers x KV heads is not a power of two.
QWEN3_G1 = Tiny("qwen3-g1", "qwen3", 3, 1)
