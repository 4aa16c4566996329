"""Keys and values as 8-bit integers (``--kv int8``): of each slot and KV head H integers, and one float32 scale.

Symmetric: the scale is the largest magnitude over H times 1/127 in float32. A slot is quantised once, when its token
is put in; eviction moves integers and scale as they are, and whoever reads them multiplies a block at a time: a query's
product with the integers of a key by the key's scale, an attention weight by the value's scale.

Scales lie along the last axis, [B, K, 1, S], as attention weights do: with S next to last, each would fill a register
of a TPU. They are float32: as bfloat16, of which a TPU pads an axis of 1 to 2, they would take as many bytes.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int8

from jkv.pytree import pytree, static

# Numbers are multiplied by one over 127, and by one over their scale: XLA makes such a product of a division where it
# likes, and a number halfway between two integers must not depend on that.
PER_STEP = np.float32(1 / 127)
SCALE_BYTES = 4


@pytree
class Int8KV:
    """One layer's keys or values, in place of an array [B, K, S, H] of ``dtype``. Like such an array, but to be read
    with ``dense`` or part by part."""

    values: Int8[Array, "B K S H"]
    scale: Float32[Array, "B K 1 S"]
    dtype: Any = static()

    @property
    def shape(self) -> tuple[int, ...]:
        """[B, K, S, H]."""
        return self.values.shape

    @property
    def ndim(self) -> int:
        """4."""
        return self.values.ndim

    @property
    def nbytes(self) -> int:
        """Of integers and scales."""
        return self.values.nbytes + self.scale.nbytes

    def dense(self, dtype: Any = None) -> Float[Array, "B K S H"]:
        """As an array: for a row or a block, never for the whole buffer."""
        return (self.values.astype(jnp.float32) * jnp.swapaxes(self.scale, 2, 3)).astype(dtype or self.dtype)


Buffer = Float[Array, "B K S H"] | Int8KV


def quantize(x: Float[Array, "B K S H"], dtype: Any) -> Int8KV:
    """Each slot's nearest integers, half to even; a slot of zeros has scale 0. dtype: what it is read as."""
    wide = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(wide), axis=-1, keepdims=True) * PER_STEP
    normal = scale >= jnp.finfo(jnp.float32).tiny
    values = jnp.round(wide * (1 / jnp.where(normal, scale, jnp.float32(1))))
    return Int8KV(values.astype(jnp.int8), jnp.swapaxes(scale, 2, 3), dtype)


def empty(shape: tuple[int, int, int, int], dtype: Any, kv: str | None) -> Buffer:
    """A layer's keys or values, nothing in them. kv: 'int8', or None for an array of ``dtype``."""
    if kv is None:
        return jnp.zeros(shape, dtype)
    rows, heads, slots, _ = shape
    return Int8KV(jnp.zeros(shape, jnp.int8), jnp.zeros((rows, heads, 1, slots), jnp.float32), jnp.dtype(dtype))


def like(buffer: Buffer, new: Float[Array, "b K T H"]) -> Float[Array, "b K T H"] | Int8KV:
    """New keys or values (of one row b, or of all) in the buffer's own form: quantised, or cast."""
    return quantize(new, buffer.dtype) if isinstance(buffer, Int8KV) else new.astype(buffer.dtype)


def dense(buffer: Buffer, dtype: Any = None) -> Float[Array, "B K S H"]:
    """A row or a block as an array of ``dtype``, by default the one it is read as."""
    return buffer.dense(dtype) if isinstance(buffer, Int8KV) else buffer.astype(dtype or buffer.dtype)


def by_part(function: Callable[..., jax.Array], *buffers: Any) -> Any:
    """``function(*arrays, axis=...)`` of buffers that are alike, for each array that they consist of; axis: that of S,
    2, or 3 for scales."""
    first = buffers[0]
    if not isinstance(first, Int8KV):
        return function(*buffers, axis=2)
    values = function(*(buffer.values for buffer in buffers), axis=2)
    return Int8KV(values, function(*(buffer.scale for buffer in buffers), axis=3), first.dtype)


def slot_bytes(head_dim: int, itemsize: int, kv: str | None) -> int:
    """Bytes of one key or value. itemsize: of the dtype it is read as."""
    return head_dim * itemsize if kv is None else head_dim + SCALE_BYTES
