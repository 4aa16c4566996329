"""prefill_attention by JAX's own function: differentiable, but it holds all scores, [B, N, T, T] in float32."""

import jax
from jaxtyping import Array, Float


def prefill_attention(
    q: Float[Array, "B T N H"], k: Float[Array, "B T K H"], v: Float[Array, "B T K H"]
) -> Float[Array, "B T N H"]:
    """See `jkv.ops.prefill_attention.api`."""
    with jax.numpy_dtype_promotion("standard"):  # with bfloat16 the function promotes its scores to float32 implicitly
        return jax.nn.dot_product_attention(q, k, v, is_causal=True)
