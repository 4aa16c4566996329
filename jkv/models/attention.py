"""Attention block. It projects and rotates; how queries meet keys (and what is cached) is the caller's choice.

The caller passes an *attend* function ``(q, k, v, kv, x) -> (out, kv, seen)``: the layer's buffer in and out, and what
the caller wants to know of the layer. ``CausalAttention`` below is the one for whole sequences (training), which has no
buffer; decoding passes its own, over the KV buffer.
"""

from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
from flax import nnx

from jkv.axes import Array, Float
from jkv.models.config import ModelConfig
from jkv.models.layers import Projection, RMSNorm
from jkv.models.rope import rotate
from jkv.ops.prefill_attention.xla import prefill_attention
from jkv.pytree import pytree

KV = TypeVar("KV")  # a layer's buffer, or None where there is none


@runtime_checkable
class Attend(Protocol[KV]):
    """How queries meet keys.

    Args:
        q, k, v: the layer's queries, keys and values; q and k come after RoPE.
        kv: the layer's buffer, or None where there is none.
        x: what q, k and v were projected from.

    Returns:
        The attention's output; the buffer, of the same type as it came; and whatever else the caller wants to know of
        the layer (a pytree of its own choice, None if nothing).
    """

    def __call__(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B T K H"],
        v: Float[Array, "B T K H"],
        kv: KV,
        x: Float[Array, "B T D"],
        /,
    ) -> tuple[Float[Array, "B T N H"], KV, Any]: ...


@pytree
class CausalAttention:
    """Every token attends to itself and its predecessors; there is no buffer.

    Right-padding needs no mask: a real token never looks at what comes after it. Differentiable: for training.
    """

    def __call__(self, q, k, v, kv, x):
        del x
        return prefill_attention(q, k, v), kv, None


class Attention(nnx.Module):
    """Grouped-query attention with optional QKV bias (Qwen 2) and per-head QK normalisation (Qwen 3)."""

    def __init__(self, config: ModelConfig, *, dtype, rngs: nnx.Rngs):
        d, n, k, h = config.d_model, config.n_heads, config.n_kv_heads, config.head_dim
        wide, narrow = ((n, h), (k, h)) if config.qkv_bias else (None, None)
        self.q = Projection("BTD,DNH->BTNH", (d, n, h), bias=wide, dtype=dtype, rngs=rngs)
        self.k = Projection("BTD,DKH->BTKH", (d, k, h), bias=narrow, dtype=dtype, rngs=rngs)
        self.v = Projection("BTD,DKH->BTKH", (d, k, h), bias=narrow, dtype=dtype, rngs=rngs)
        self.o = Projection("BTNH,NHD->BTD", (n, h, d), bias=(d,) if config.o_bias else None, dtype=dtype, rngs=rngs)
        self.q_norm = RMSNorm(h, config.rms_eps, dtype=dtype) if config.qk_norm else None
        self.k_norm = RMSNorm(h, config.rms_eps, dtype=dtype) if config.qk_norm else None

    def __call__(
        self, x: Float[Array, "B T D"], cos: jax.Array, sin: jax.Array, attend: Attend, kv: Any
    ) -> tuple[Float[Array, "B T D"], Any, Any]:
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        out, kv, seen = attend(rotate(q, cos, sin), rotate(k, cos, sin), v, kv, x)
        return self.o(out), kv, seen
