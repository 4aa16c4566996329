"""The attention of a decoder block: projections and rotary embedding. What queries attend to is the caller's choice.

The caller passes an ``Attend``: a function that computes the attention itself, and updates the layer's KV buffer if
there is one. ``CausalAttention`` is the one for whole sequences without a buffer, as in training. Prefill and decode
have their own in `jkv.engine`.
"""

from typing import Any, Protocol, TypeVar, runtime_checkable

from flax import nnx
from jax.typing import DTypeLike

from jkv.axes import Array, Float
from jkv.models.config import ModelConfig
from jkv.models.layers import Projection, RMSNorm
from jkv.models.rope import rotate
from jkv.ops.prefill_attention.xla import prefill_attention
from jkv.pytree import pytree

KV = TypeVar("KV")  # the type of a layer's KV buffer; None without one


@runtime_checkable
class Attend(Protocol[KV]):
    """How the queries of a layer attend to keys: a function that a ``Decoder`` calls in each layer.

    ``KV`` is the type of the layer's KV buffer, None where there is no buffer.
    """

    def __call__(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B T K H"],
        v: Float[Array, "B T K H"],
        kv: KV,
        x: Float[Array, "B T D"],
        /,
    ) -> tuple[Float[Array, "B T N H"], KV, Any]:
        """Attend, in one layer.

        Args:
            q: queries, after RoPE.
            k: keys of the same tokens, after RoPE.
            v: values of the same tokens.
            kv: the layer's buffer.
            x: what q, k and v are projections of: the layer's input after its norm.

        Returns:
            The attention's output; the buffer, updated; and what else the caller wants to learn of this layer, as a
            pytree of its choice (None for nothing). The decoder returns the last two for each layer.
        """
        ...


@pytree
class CausalAttention:
    """Every token attends to itself and its predecessors. It uses no buffer, and is differentiable.

    Padding after a sequence needs no mask, because no real token attends to it.
    """

    def __call__(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B T K H"],
        v: Float[Array, "B T K H"],
        kv: KV,
        x: Float[Array, "B T D"],
        /,
    ) -> tuple[Float[Array, "B T N H"], KV, None]:
        """The attention's output, and ``kv`` as it came."""
        del x
        return prefill_attention(q, k, v), kv, None


class Attention(nnx.Module):
    """Grouped-query attention (arXiv:2305.13245) with optional QKV bias (Qwen 2) and QK normalisation (Qwen 3)."""

    def __init__(self, config: ModelConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        d, n, k, h = config.d_model, config.n_heads, config.n_kv_heads, config.head_dim
        wide, narrow = ((n, h), (k, h)) if config.qkv_bias else (None, None)
        self.q = Projection("BTD,DNH->BTNH", (d, n, h), bias=wide, dtype=dtype, rngs=rngs)
        self.k = Projection("BTD,DKH->BTKH", (d, k, h), bias=narrow, dtype=dtype, rngs=rngs)
        self.v = Projection("BTD,DKH->BTKH", (d, k, h), bias=narrow, dtype=dtype, rngs=rngs)
        self.o = Projection("BTNH,NHD->BTD", (n, h, d), bias=(d,) if config.o_bias else None, dtype=dtype, rngs=rngs)
        self.q_norm = RMSNorm(h, config.rms_eps, dtype=dtype) if config.qk_norm else None
        self.k_norm = RMSNorm(h, config.rms_eps, dtype=dtype) if config.qk_norm else None

    def __call__(
        self,
        x: Float[Array, "B T D"],
        cos: Float[Array, "B T 1 half"],
        sin: Float[Array, "B T 1 half"],
        attend: Attend[KV],
        kv: KV,
    ) -> tuple[Float[Array, "B T D"], KV, Any]:
        """The layer's attention.

        Args:
            x: the layer's input after its norm.
            cos: see `jkv.models.rope.rotation`.
            sin: likewise.
            attend: how queries attend to keys.
            kv: the layer's buffer.

        Returns:
            What is added to the residual stream, and what ``attend`` returned besides its output.
        """
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        out, kv, seen = attend(rotate(q, cos, sin), rotate(k, cos, sin), v, kv, x)
        return self.o(out), kv, seen
