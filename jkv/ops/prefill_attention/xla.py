"""prefill_attention as JAX has it: differentiable, but off GPU it holds all scores, [B, N, T, T] float32."""

import jax
from jaxtyping import Array, Float


def prefill_attention(
    q: Float[Array, "B T N H"], k: Float[Array, "B T K H"], v: Float[Array, "B T K H"]
) -> Float[Array, "B T N H"]:
    with jax.numpy_dtype_promotion("standard"):  # in bfloat16 it promotes its logits to float32 implicitly
        return jax.nn.dot_product_attention(q, k, v, is_causal=True)
