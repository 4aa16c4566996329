"""Tiny random checkpoints, written by transformers itself, whose logits are far from zero."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0}
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}


@dataclasses.dataclass(frozen=True)
class Case:
    """One checkpoint: its architecture, head counts, and whatever else its Hugging Face config says."""

    name: str
    architecture: str
    n_heads: int
    n_kv_heads: int
    more: dict[str, Any]
    tied: bool = False
    head_dim: int = 12
    d_model: int = 56

    def config(self) -> Any:
        import transformers

        kind = {"llama": "LlamaConfig", "qwen2": "Qwen2Config", "qwen3": "Qwen3Config"}[self.architecture]
        return getattr(transformers, kind)(
            vocab_size=97,
            hidden_size=self.d_model,
            intermediate_size=72,
            num_hidden_layers=2,
            num_attention_heads=self.n_heads,
            num_key_value_heads=self.n_kv_heads,
            head_dim=self.head_dim,
            max_position_embeddings=128,
            tie_word_embeddings=self.tied,
            bos_token_id=1,
            eos_token_id=2,
            initializer_range=0.25,
            attn_implementation="eager",
            **self.more,
        )

    def model(self) -> Any:
        """The transformers model in float32. Norm scales and biases are randomised too (their defaults hide errors)."""
        import torch
        import transformers

        torch.manual_seed(len(self.name))
        model = transformers.AutoModelForCausalLM.from_config(self.config(), attn_implementation="eager")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    parameter.normal_(0, 0.5)
                elif "norm" in name:
                    parameter.uniform_(0.5, 1.5)
        return model.eval().float()

    def save(self, directory: Path, dtype: str = "float32", shard: str = "5GB") -> Any:
        import torch

        model = self.model().to(getattr(torch, dtype))
        model.save_pretrained(directory, max_shard_size=shard)
        return model


CASES = (
    Case("llama-llama3", "llama", 8, 2, {"rope_parameters": LLAMA3}),
    Case("llama-biases", "llama", 7, 7, {"attention_bias": True, "mlp_bias": True, "rope_parameters": PLAIN}),
    Case("llama-tied-linear", "llama", 4, 2, {"rope_parameters": LINEAR}, tied=True),
    Case("qwen2", "qwen2", 7, 1, {"rope_parameters": PLAIN}),
    Case("qwen2-tied-yarn", "qwen2", 4, 2, {"rope_parameters": YARN}, tied=True),
    Case("qwen2-yarn-mscale", "qwen2", 4, 1, {"rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.3}}),
    Case("qwen2-yarn-exact", "qwen2", 4, 4, {"rope_parameters": {**YARN, "truncate": False, "attention_factor": 1.3}}),
    Case("qwen3", "qwen3", 4, 1, {"rope_parameters": PLAIN}),
    Case("qwen3-biases-tied", "qwen3", 6, 3, {"attention_bias": True, "rope_parameters": YARN}, tied=True),
)


def hf_logits(model: Any, tokens: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Logits of the transformers model, [B, T, V]."""
    import torch

    with torch.no_grad():
        out = model(torch.from_numpy(tokens), position_ids=torch.from_numpy(positions), use_cache=False)
    return out.logits.float().numpy()
