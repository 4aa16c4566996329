"""prefill_attention by the splash attention kernel that comes with JAX.

The kernel skips blocks of scores above the diagonal, and holds no array of T x T.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask
from jaxtyping import Array, Float

from jkv.ops.sharding import per_shard

LANES = 128  # of a TPU's vector registers
BLOCK = 512  # tokens of queries, and of keys, at a time


def prefill_attention(
    q: Float[Array, "B T N H"], k: Float[Array, "B T K H"], v: Float[Array, "B T K H"], *, interpret: bool = False
) -> Float[Array, "B T N H"]:
    """See `jkv.ops.prefill_attention.api`.

    Args:
      q: queries after RoPE.
      k: keys after RoPE.
      v: values.
      interpret: whether Pallas' interpreter runs the kernel, which works on CPU.

    Raises:
      NotImplementedError: H is no multiple of 64, or the dtype is neither bfloat16 nor float32.
    """
    if q.shape[3] % (LANES // 2):
        raise NotImplementedError(f"splash attention wants a head dimension of 64 or 128, not {q.shape[3]}")
    if q.dtype not in (jnp.bfloat16, jnp.float32):
        raise NotImplementedError(f"splash attention is set up for bfloat16 and float32, not {q.dtype}")

    def on_one_device(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array]:
        """A device's own rows and heads."""
        return (_splash(q, k, v, interpret=interpret),)

    (out,) = per_shard(on_one_device, ("BTNH", "BTKH", "BTKH"), ("BTNH",))(q, k, v)
    return out


def _splash(q: jax.Array, k: jax.Array, v: jax.Array, *, interpret: bool) -> jax.Array:
    tokens, heads, dim = q.shape[1:]
    padded = -(-tokens // LANES) * LANES
    padded = padded if padded <= BLOCK else -(-tokens // BLOCK) * BLOCK
    block = min(padded, BLOCK)
    # Heads before tokens, and padding after the tokens, where no token attends to it.
    fit = lambda x: jnp.pad(jnp.swapaxes(x, 1, 2), ((0, 0), (0, 0), (0, padded - tokens), (0, 0)))
    mask = splash_attention_mask.MultiHeadMask([splash_attention_mask.CausalMask((padded, padded))] * heads)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        kernel = splash_attention_kernel.make_splash_mha(
            mask,
            block_sizes=splash_attention_kernel.BlockSizes(block_q=block, block_kv=block, block_kv_compute=block),
            head_shards=1,
            q_seq_shards=1,
            interpret=interpret,
        )
        # The kernel doesn't scale. Rounding the scaled queries is exact for H = 64, where the factor is a power of two.
        scaled = (q.astype(jnp.float32) * dim**-0.5).astype(q.dtype)
        out: Any = jax.vmap(kernel)(fit(scaled), fit(k), fit(v))
    return jnp.swapaxes(out[:, :, :tokens], 1, 2).astype(q.dtype)
