"""Frozen configuration of a model: what distinguishes the members of the decoder family, and nothing else."""

import dataclasses
from typing import Literal

from jkv.ops.buffer import slot_bytes

Architecture = Literal["llama", "qwen2", "qwen3"]


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """RoPE scaling of Llama 3.1: long wavelengths are divided by ``factor``, short ones kept, a ramp in between."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclasses.dataclass(frozen=True)
class YarnScaling:
    """YaRN (arXiv:2309.00071): per-frequency interpolation, and a factor on cos and sin."""

    factor: float
    original_max_positions: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    truncate: bool = True


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """Position interpolation: every frequency divided by ``factor``."""

    factor: float


RopeScaling = Llama3Scaling | YarnScaling | LinearScaling | None


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """One decoder of the Llama 3 / Qwen 2 / Qwen 3 family.

    The axis letter of each size is in its comment. ``qkv_bias`` and ``o_bias`` are separate because Qwen 2 has
    only the first and Llama's ``attention_bias`` switches on both.
    """

    architecture: Architecture
    vocab_size: int  # V
    d_model: int  # D
    d_ff: int  # F
    n_layers: int  # L
    n_heads: int  # N
    n_kv_heads: int  # K
    head_dim: int  # H
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
        """Bytes of a KV buffer of ``batch`` rows and ``slots`` slots: L*B*K*S*H*2*itemsize, exactly; of one of ``kv``
        'int8' L*B*K*S*(H+4)*2."""
        return self.n_layers * batch * self.n_kv_heads * slots * 2 * slot_bytes(self.head_dim, itemsize, kv)
