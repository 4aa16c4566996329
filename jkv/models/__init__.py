"""One decoder for Llama 3.x, Qwen 2/2.5 and Qwen 3, and small modules that policies need beside it."""

from jkv.models.attention import CausalAttention
from jkv.models.decoder import Decoder

__all__ = ["CausalAttention", "Decoder"]
