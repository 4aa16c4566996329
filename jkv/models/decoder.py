"""The decoder: embedding, L blocks, final norm, head. It holds no KV buffers: they are arguments and results."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.core import Tracer
from jax.typing import DTypeLike

from jkv.axes import Array, Float, Int
from jkv.models.attention import KV, Attend, Attention, CausalAttention
from jkv.models.config import ModelConfig
from jkv.models.layers import FeedForward, RMSNorm, project
from jkv.models.quantized import embed_tokens
from jkv.models.rope import rotation


class Block(nnx.Module):
    """One layer: attention and feed-forward, each after a norm and added to its input."""

    def __init__(self, config: ModelConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(config.d_model, config.rms_eps, dtype=dtype)
        self.attention = Attention(config, dtype=dtype, rngs=rngs)
        self.mlp_norm = RMSNorm(config.d_model, config.rms_eps, dtype=dtype)
        self.mlp = FeedForward(config, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        cos: Float[Array, "B T 1 half"],
        sin: Float[Array, "B T 1 half"],
        attend: Attend[KV],
        kv: KV,
    ) -> tuple[Float[Array, "B T D"], KV, Any]:
        """The layer's output, and what ``attend`` returned besides its own. Arguments as those of ``Attention``."""
        mixed, kv, seen = self.attention(self.attention_norm(x), cos, sin, attend, kv)
        x = x + mixed
        return x + self.mlp(self.mlp_norm(x)), kv, seen


def _block(
    graph: nnx.GraphDef[Block],
    weights: nnx.State,
    x: jax.Array,
    cos: jax.Array,
    sin: jax.Array,
    attend: Attend[KV],
    kv: KV,
) -> tuple[jax.Array, KV, Any]:
    return nnx.merge(graph, weights)(x, cos, sin, attend, kv)


def _block_runner(attends: Sequence[Attend[Any]], x: jax.Array) -> Callable[..., Any]:
    """The function to run each block with: within a program, one that is traced and lowered once for all layers.

    Blocks are alike, so XLA can put the same code into each layer's place. On a mesh with a manual axis the blocks are
    lowered one by one all the same, because XLA's partitioner fails on function calls there.

    Args:
        attends: each layer's.
        x: the hidden states, to see whether a program is being traced.
    """
    # An attend that isn't a pytree can't be an argument of a jitted function, and may differ from layer to layer.
    if not isinstance(x, Tracer) or jax.tree_util.all_leaves(attends):
        return _block

    # A new function per program: JAX's trace cache is keyed by function, and a trace made for CPU is wrong for TPU.
    def block(*arguments: Any) -> Any:
        """``_block`` under a function of its own."""
        return _block(*arguments)

    return jax.jit(block, static_argnums=0, inline=bool(jax.sharding.get_abstract_mesh().manual_axes))


class Decoder(nnx.Module):
    """Llama 3.x, Qwen 2/2.5 or Qwen 3, by its config.

    Layers are unrolled, not scanned, so that each has a KV buffer of its own: of one buffer for all layers, scanned
    over, XLA would make a copy.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        """A decoder with random weights.

        Args:
            config: its sizes and switches.
            rngs: the source of the random weights.
            dtype: of weights and activations.
        """
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
    def dtype(self) -> jnp.dtype:
        """The dtype of activations, and of the weights that aren't int8."""
        return self.final_norm.scale.get_value().dtype

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        attend: Attend[Any] | Sequence[Attend[Any]] | None = None,
        kv: Sequence[Any] | None = None,
    ) -> tuple[Float[Array, "B T D"], tuple[tuple[Any, Any], ...]]:
        """Run the layers.

        Args:
            tokens: token ids.
            positions: each token's place in its sequence.
            attend: how queries attend to keys, one for all layers or one for each; None means causal attention.
            kv: each layer's buffer, of the type that ``attend`` takes; None if it takes none.

        Returns:
            The hidden states after the final norm, and for each layer what ``attend`` returned besides its output: the
            updated buffer, and what it saw.
        """
        attends = (attend or CausalAttention(),) * self.config.n_layers if not isinstance(attend, Sequence) else attend
        kv_in = kv if kv is not None else (None,) * self.config.n_layers
        cos, sin = rotation(self.config, positions)
        x = embed_tokens(self.embed.get_value(), tokens, self.dtype)
        run = _block_runner(attends, x)
        per_layer = []
        for block, its_attend, layer_kv in zip(self.layers, attends, kv_in, strict=True):
            x, layer_kv, seen = run(*nnx.split(block), x, cos, sin, its_attend, layer_kv)
            if x.shape[1] > 1:
                # Without it the TPU compiler stores what each layer adds [B, T, D] to the end, to add all up again.
                x = jax.lax.optimization_barrier(x)
            per_layer.append((layer_kv, seen))
        return self.final_norm(x), tuple(per_layer)

    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """The logits of the next token, float32. hidden: what calling the decoder returned."""
        if self.head is None:
            return project("BTD,VD->BTV", hidden, self.embed.get_value(), preferred_element_type=jnp.float32)
        return project("BTD,DV->BTV", hidden, self.head.get_value(), preferred_element_type=jnp.float32)
