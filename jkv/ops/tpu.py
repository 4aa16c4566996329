"""What the TPU kernels share: how a KV buffer, int8 or not, becomes an operand that a kernel updates in place."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from jkv.ops.buffer import Buffer, Int8KV, Stored, by_part


def kernel_buffer(buffer: Buffer, padded: int, *, interpret: bool | pltpu.InterpretParams) -> Stored:
    """The KV buffer as an operand that a kernel updates in place.

    On TPU the buffer is pinned to HBM: the compiler would move one that fits into VMEM there and back as a whole.

    The interpreter can't update a buffer in place that it has to pad to whole blocks. So for it the buffer is padded
    here, with NaN (integers with 77), which would show in the results if a kernel used them. ``cut_to`` removes it.

    Args:
        buffer: [B, K, S, H].
        padded: the slots of all blocks together, at least S.
        interpret: whether the kernel is interpreted: False, True or `pltpu.InterpretParams`.

    Returns:
        The buffer in its own form, of S slots, or for the interpreter of ``padded`` slots.
    """
    if not interpret:
        return jax.tree.map(lambda leaf: pltpu.with_memory_space_constraint(leaf, pltpu.HBM), buffer)

    def pad(leaf: jax.Array, *, axis: int) -> jax.Array:
        """One array of the buffer with ``padded`` slots along the axis."""
        widths = [(0, 0)] * 4
        widths[axis] = (0, padded - leaf.shape[axis])
        return jnp.pad(leaf, widths, constant_values=jnp.nan if jnp.issubdtype(leaf.dtype, jnp.floating) else 77)

    return by_part(pad, buffer)


def cut_to(buffer: Buffer, slots: int) -> Stored:
    """The buffer's first ``slots`` slots: without the padding that ``kernel_buffer`` adds for the interpreter."""
    return by_part(lambda leaf, *, axis: jax.lax.slice_in_dim(leaf, 0, slots, axis=axis), buffer)


def in_hbm(buffer: Buffer) -> Any:
    """The output type (`out_shape`) of a kernel for a buffer that it updates in place: a buffer like it, in HBM."""
    return jax.tree.map(lambda leaf: pltpu.HBM(leaf.shape, leaf.dtype), buffer)


def from_parts(buffer: Int8KV, values: Any, scale: Any) -> Int8KV:
    """A pytree of the structure of an int8 buffer.

    Args:
        buffer: the buffer whose structure it has.
        values: what stands in the place of the integers: an array, or their `pl.BlockSpec`.
        scale: what stands in the place of the scales.
    """
    return jax.tree.unflatten(jax.tree.structure(buffer), [values, scale])


def to_parts(ref: Any) -> tuple[Any, Any]:
    """A buffer's reference within a kernel as two: that of its keys or values [.., S, H], and that of its scales.

    The second is None for a buffer without scales.
    """
    return (ref.values, ref.scale) if isinstance(ref, Int8KV) else (ref, None)
