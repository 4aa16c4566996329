"""The configuration of a model: what distinguishes the members of the decoder family, and nothing else."""

import dataclasses
from typing import Literal

from jkv.ops.buffer import slot_bytes

Architecture = Literal["llama", "qwen2", "qwen3"]


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """RoPE scaling of Llama 3.1 (`apply_scaling` of meta-llama/llama-models).

    Attributes:
        factor: what low frequencies are divided by.
        low_freq_factor: a frequency is low if it turns at most so often within ``original_max_positions``.
        high_freq_factor: a frequency is kept if it turns at least so often. In between the division fades out.
        original_max_positions: the context length, in tokens, that the model was trained with at first.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclasses.dataclass(frozen=True)
class YarnScaling:
    """YaRN (arXiv:2309.00071): low frequencies are divided, and cos and sin are multiplied by a factor.

    Attributes:
        factor: what low frequencies are divided by.
        original_max_positions: the context length, in tokens, that the model was trained with at first.
        beta_fast: a frequency that turns at least so often within that context is kept.
        beta_slow: a frequency that turns at most so often is divided in full. In between the division fades out.
        attention_factor: what cos and sin are multiplied by.
        truncate: whether the bounds of the fade are rounded outwards to whole frequencies.
    """

    factor: float
    original_max_positions: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    truncate: bool = True


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """Position interpolation (arXiv:2306.15595): every frequency is divided by ``factor``."""

    factor: float


RopeScaling = Llama3Scaling | YarnScaling | LinearScaling | None


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The configuration of one decoder of the Llama 3 / Qwen 2 / Qwen 3 family.

    Attributes:
        architecture: its `model_type` in Hugging Face's `config.json`.
        vocab_size: V, tokens of the vocabulary.
        d_model: D, size of the hidden states.
        d_ff: F, size of the feed-forward layer.
        n_layers: L, layers.
        n_heads: N, query heads.
        n_kv_heads: K, KV heads, of which N is a multiple.
        head_dim: H, size of one head; even, because rotary embedding turns pairs.
        rope_theta: the base of RoPE's frequencies.
        rope_scaling: how RoPE's frequencies are changed for long contexts, if they are.
        rms_eps: what is added to the mean square in every norm.
        qkv_bias: whether queries, keys and values have a bias. Apart from ``o_bias``, because Qwen 2 has only this one,
            and Llama's ``attention_bias`` switches on both.
        o_bias: whether the attention's output projection has a bias.
        mlp_bias: whether the feed-forward layer has biases.
        qk_norm: whether queries and keys are normalised for each head (Qwen 3).
        tied_head: whether the embedding serves as the head, too.
        max_positions: the context length, in tokens, that the model is made for.
        bos_id: the id of the token that begins a text, if there is one.
        eos_ids: the ids of the tokens that end an answer.
    """

    architecture: Architecture
    vocab_size: int
    d_model: int
    d_ff: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    rope_theta: float
    rope_scaling: RopeScaling = None
    rms_eps: float = 1e-6
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tied_head: bool = False
    max_positions: int = 131072
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()

    def __post_init__(self):
        for name in ("vocab_size", "d_model", "d_ff", "n_layers", "n_heads", "n_kv_heads", "head_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, must be at least 1")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"{self.n_heads} query heads can't be shared by {self.n_kv_heads} KV heads")
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; rotary embedding turns pairs")

    def kv_bytes(self, batch: int, slots: int, itemsize: int, kv: str | None = None) -> int:
        """Bytes of a KV buffer, exactly: L*B*K*S*H*2*itemsize, or L*B*K*S*(H+4)*2 for int8.

        Args:
            batch: B, rows.
            slots: S, slots of each row.
            itemsize: bytes of one number of the model's dtype.
            kv: 'int8', or None for a buffer of the model's dtype.
        """
        return self.n_layers * batch * self.n_kv_heads * slots * 2 * slot_bytes(self.head_dim, itemsize, kv)
