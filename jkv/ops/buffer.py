"""A layer's keys or values in the KV buffer: an array, or with ``--kv int8`` 8-bit integers with scales.

An int8 buffer has H integers and one float32 scale for each slot and KV head. The scale is the largest magnitude over H
times 1/127, and there is no zero point. A slot is quantised once, when its token is inserted; an eviction moves
integers and scales unchanged. Attention never dequantises a whole buffer. It multiplies a query's product with the
integers of a key by the key's scale, and an attention weight by the value's scale; on CPU it dequantises one block of
slots at a time.

Scales are [B, K, 1, S], with slots on the last axis as in attention weights. A TPU pads the last axis to 128, so
[B, K, S, 1] would take 128 times as many bytes. Scales are float32 because bfloat16 would save nothing: there a TPU
pads the axis of 1 to 2 (docs/int8.md).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int8

from jkv.pytree import pytree, static

# XLA may replace a division by a product with the reciprocal, which rounds differently. So quantisation multiplies by
# reciprocals itself: then a number halfway between two integers becomes the same one in every program.
PER_STEP = np.float32(1 / 127)
SCALE_BYTES = 4


@pytree
class Int8KV:
    """One layer's keys or values as int8. It stands for an array [B, K, S, H] whose shape and dtype it shows.

    Attributes:
        values: the integers.
        scale: what the integers of each slot and KV head are multiplied by.
        dtype: the dtype of the array that it stands for, which ``dense`` gives.
    """

    values: Int8[Array, "B K S H"]
    scale: Float32[Array, "B K 1 S"]
    dtype: DTypeLike = static()

    @property
    def shape(self) -> tuple[int, ...]:
        """[B, K, S, H]."""
        return self.values.shape

    @property
    def ndim(self) -> int:
        """The number of axes: 4."""
        return self.values.ndim

    @property
    def nbytes(self) -> int:
        """Bytes of integers and scales together."""
        return self.values.nbytes + self.scale.nbytes

    def dense(self, dtype: DTypeLike | None = None) -> Float[Array, "B K S H"]:
        """Dequantise into an array. Meant for a row or a block of slots: for a whole buffer it would undo the saving.

        Args:
            dtype: the array's dtype; None means ``self.dtype``.
        """
        return (self.values.astype(jnp.float32) * jnp.swapaxes(self.scale, 2, 3)).astype(dtype or self.dtype)


Buffer = Float[Array, "B K S H"] | Int8KV
Stored = jax.Array | Int8KV  # keys or values of any number of rows and slots, in the form of a buffer


def quantize(x: Float[Array, "B K S H"], dtype: DTypeLike) -> Int8KV:
    """Quantise each slot to its nearest integers, halves to the even one.

    A slot whose scale would be zero or subnormal becomes zeros.

    Args:
        x: keys or values.
        dtype: the dtype that the result stands for.
    """
    wide = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(wide), axis=-1, keepdims=True) * PER_STEP
    normal = scale >= jnp.finfo(jnp.float32).tiny
    values = jnp.round(wide * (1 / jnp.where(normal, scale, jnp.float32(1))))
    return Int8KV(values.astype(jnp.int8), jnp.swapaxes(scale, 2, 3), dtype)


def empty(shape: tuple[int, int, int, int], dtype: DTypeLike, kv: str | None) -> Buffer:
    """A buffer of zeros for a layer's keys or values.

    Args:
        shape: (B, K, S, H).
        dtype: the buffer's dtype; of an int8 buffer, the dtype that it stands for.
        kv: 'int8', or None for an array.
    """
    if kv is None:
        return jnp.zeros(shape, dtype)
    rows, heads, slots, _ = shape
    return Int8KV(jnp.zeros(shape, jnp.int8), jnp.zeros((rows, heads, 1, slots), jnp.float32), jnp.dtype(dtype))


def like(buffer: Buffer, new: Float[Array, "b K T H"]) -> Float[Array, "b K T H"] | Int8KV:
    """New keys or values in the form of the buffer: quantised, or cast to its dtype. ``b`` is B, or 1 for one row."""
    return quantize(new, buffer.dtype) if isinstance(buffer, Int8KV) else new.astype(buffer.dtype)


def dense(buffer: Buffer, dtype: DTypeLike | None = None) -> Float[Array, "B K S H"]:
    """A row or a block of slots as an array; see ``Int8KV.dense``. dtype: None means the buffer's."""
    return buffer.dense(dtype) if isinstance(buffer, Int8KV) else buffer.astype(dtype or buffer.dtype)


def by_part(function: Callable[..., jax.Array], *buffers: Stored) -> Stored:
    """Apply a function to the arrays that buffers consist of.

    Args:
        function: called as ``function(*arrays, axis=axis)`` with an array of each buffer, where ``axis`` is the axis of
            S: 2, or 3 for scales. For an int8 buffer it is called twice, with the integers and with the scales.
        *buffers: arrays or Int8KV, all of one kind.

    Returns:
        A buffer of that kind, made of the function's results.
    """
    quantized = [buffer for buffer in buffers if isinstance(buffer, Int8KV)]
    if not quantized:
        return function(*buffers, axis=2)
    values = function(*(buffer.values for buffer in quantized), axis=2)
    return Int8KV(values, function(*(buffer.scale for buffer in quantized), axis=3), quantized[0].dtype)


def slot_bytes(head_dim: int, itemsize: int, kv: str | None) -> int:
    """Bytes of one key, or of one value, in one slot and KV head.

    Args:
        head_dim: H.
        itemsize: bytes of one number of the buffer's dtype.
        kv: 'int8', or None for an array.
    """
    return head_dim * itemsize if kv is None else head_dim + SCALE_BYTES
