"""Integers in the order of floats. XLA compares integers exactly on every platform; floats it may flush or round."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float32, Int32


def in_order(scores: Float32[Array, "*shape"]) -> Int32[Array, "*shape"]:
    """int32 numbers that compare as the scores do.

    Both zeros become 0, and so do subnormals, because XLA flushes those to zero on some platforms.

    Args:
      scores: any shape, without NaN.
    """
    zero = jnp.abs(scores) < jnp.finfo(jnp.float32).tiny
    bits = lax.bitcast_convert_type(jnp.where(zero, jnp.float32(0), scores), jnp.int32)
    return jnp.where(bits < 0, bits ^ jnp.int32(0x7FFFFFFF), bits)
