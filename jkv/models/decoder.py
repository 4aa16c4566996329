"""The decoder: embedding, L blocks, final norm, head. Cache in, cache out."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.core import Tracer

from jkv.axes import Array, Float, Int
from jkv.models.attention import Attend, Attention, CausalAttention
from jkv.models.config import ModelConfig
from jkv.models.layers import FeedForward, RMSNorm, project
from jkv.models.quantized import embed_tokens
from jkv.models.rope import rotation


class Block(nnx.Module):
    """Pre-norm attention and feed-forward with residuals."""

    def __init__(self, config: ModelConfig, *, dtype, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(config.d_model, config.rms_eps, dtype=dtype)
        self.attention = Attention(config, dtype=dtype, rngs=rngs)
        self.mlp_norm = RMSNorm(config.d_model, config.rms_eps, dtype=dtype)
        self.mlp = FeedForward(config, dtype=dtype, rngs=rngs)

    def __call__(self, x, cos, sin, attend: Attend, kv: Any):
        mixed, kv, seen = self.attention(self.attention_norm(x), cos, sin, attend, kv)
        x = x + mixed
        return x + self.mlp(self.mlp_norm(x)), kv, seen


def _block(graph: Any, weights: nnx.State, x: jax.Array, cos: jax.Array, sin: jax.Array, attend: Attend, kv: Any):
    return nnx.merge(graph, weights)(x, cos, sin, attend, kv)


def _how_to_run(attends: Sequence[Attend], x: jax.Array) -> Callable[..., Any]:
    """Blocks are alike, so JAX traces one for all layers of a program, and lowers one that XLA puts into each layer's
    place. Where a mesh has a manual axis each layer is lowered: the partitioner fails on calls there."""
    if not isinstance(x, Tracer) or jax.tree_util.all_leaves(attends):
        return _block  # no program; or an attend that can't be an argument, and may differ from layer to layer

    # A new function per program: JAX's trace cache is keyed by function, and a trace made for CPU is wrong for TPU.
    def block(*arguments: Any) -> Any:
        return _block(*arguments)

    return jax.jit(block, static_argnums=0, inline=bool(jax.sharding.get_abstract_mesh().manual_axes))


class Decoder(nnx.Module):
    """Llama 3.x, Qwen 2/2.5 or Qwen 3, by its config. Layers are unrolled so that each owns a KV buffer of its own:
    one buffer scanned over layers makes XLA copy all of it."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype=jnp.float32):
        self.config = config
        self.embed = nnx.Param(jax.random.normal(rngs.params(), (config.vocab_size, config.d_model), dtype) * 0.02)
        self.layers = nnx.List([Block(config, dtype=dtype, rngs=rngs) for _ in range(config.n_layers)])
        self.final_norm = RMSNorm(config.d_model, config.rms_eps, dtype=dtype)
        if config.tied_head:
            self.head = None
        else:
            scale = jnp.asarray(config.d_model**-0.5, dtype)
            shape = (config.d_model, config.vocab_size)
            self.head = nnx.Param(jax.random.normal(rngs.params(), shape, dtype) * scale)

    @property
    def dtype(self) -> Any:
        """Of activations; weights have it, too, unless they are int8."""
        return self.final_norm.scale.get_value().dtype

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        attend: Attend | Sequence[Attend] | None = None,
        kv: Sequence[Any] | None = None,
    ) -> tuple[Float[Array, "B T D"], tuple[tuple[Any, Any], ...]]:
        """Run the layers.

        Args:
            tokens: token ids.
            positions: each token's place in its sequence.
            attend: how queries meet keys, in every layer or in each; causal attention unless given.
            kv: each layer's buffer.

        Returns:
            Final-norm hidden states, and of each layer what ``attend`` gave back: its buffer, and what it saw.
        """
        attends = (attend or CausalAttention(),) * self.config.n_layers if not isinstance(attend, Sequence) else attend
        kv_in = kv if kv is not None else (None,) * self.config.n_layers
        cos, sin = rotation(self.config, positions)
        x = embed_tokens(self.embed.get_value(), tokens, self.dtype)
        run = _how_to_run(attends, x)
        per_layer = []
        for block, its_attend, layer_kv in zip(self.layers, attends, kv_in, strict=True):
            x, layer_kv, seen = run(*nnx.split(block), x, cos, sin, its_attend, layer_kv)
            if x.shape[1] > 1:
                # Else the TPU compiler keeps each layer's contribution [B, T, D] to the end, to add all up once more.
                x = jax.lax.optimization_barrier(x)
            per_layer.append((layer_kv, seen))
        return self.final_norm(x), tuple(per_layer)

    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Scores over the vocabulary, float32."""
        if self.head is None:
            return project("BTD,VD->BTV", hidden, self.embed.get_value(), preferred_element_type=jnp.float32)
        return project("BTD,DV->BTV", hidden, self.head.get_value(), preferred_element_type=jnp.float32)
