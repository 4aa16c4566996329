"""Attention block. It projects and rotates; how queries meet keys (and what is cached) is the caller's choice.

The caller passes an *attend* function ``(q, k, v, kv, x) -> (out, kv)``: cache in, cache out. ``CausalAttention`` below
is the one for whole sequences (training, prefill); decoding passes its own, over the KV buffer.
"""

from typing import Any, Protocol, runtime_checkable

import jax
from flax import nnx

from jkv.axes import Array, Float
from jkv.config import ModelConfig
from jkv.models.layers import Projection, RMSNorm
from jkv.models.rope import rotate
from jkv.ops.prefill_attention.xla import prefill_attention
from jkv.pytree import pytree


@runtime_checkable
class Attend(Protocol):
    """How queries meet keys. ``kv`` is whatever the caller keeps per layer; keys arrive after RoPE. ``x`` is what q,
    k and v were projected from."""

    def __call__(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B T K H"],
        v: Float[Array, "B T K H"],
        kv: Any,
        x: Float[Array, "B T D"],
        /,
    ) -> tuple[Float[Array, "B T N H"], Any]: ...


@pytree
class CausalAttention:
    """Every token attends to itself and its predecessors; ``kv`` out is the (k, v) of all tokens.

    Right-padding needs no mask: a real token never looks at what comes after it. Differentiable: for training.
    """

    def __call__(self, q, k, v, kv, x):
        del kv, x
        return prefill_attention(q, k, v), (k, v)


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
    ) -> tuple[Float[Array, "B T D"], Any]:
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        out, kv = attend(rotate(q, cos, sin), rotate(k, cos, sin), v, kv, x)
        return self.o(out), kv
