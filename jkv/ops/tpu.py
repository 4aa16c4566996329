"""What the TPU kernels share."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from jkv.ops.buffer import Buffer, Int8KV, by_part


def kernel_buffer(buffer: Buffer, padded: int, *, interpret: Any) -> Any:
    """The KV buffer as a kernel's operand that is updated in place.

    On TPU it is held in HBM: the compiler would move a buffer that fits into VMEM there and back, all of it. The
    interpreter can't alias a buffer that it has to pad to whole blocks (``padded`` slots): there it is padded
    beforehand, with NaN (integers with 77), and ``cut_to`` cuts the result.
    """
    if not interpret:
        return jax.tree.map(lambda leaf: pltpu.with_memory_space_constraint(leaf, pltpu.HBM), buffer)

    def pad(leaf: jax.Array, *, axis: int) -> jax.Array:
        widths = [(0, 0)] * 4
        widths[axis] = (0, padded - leaf.shape[axis])
        return jnp.pad(leaf, widths, constant_values=jnp.nan if jnp.issubdtype(leaf.dtype, jnp.floating) else 77)

    return by_part(pad, buffer)


def cut_to(buffer: Buffer, slots: int) -> Any:
    """The first ``slots`` slots: all of them, but for the interpreter's padding."""
    return by_part(lambda leaf, *, axis: jax.lax.slice_in_dim(leaf, 0, slots, axis=axis), buffer)


def in_hbm(buffer: Buffer) -> Any:
    """The kernel's result that takes the place of such an operand."""
    return jax.tree.map(lambda leaf: pltpu.HBM(leaf.shape, leaf.dtype), buffer)


def parts_of(buffer: Int8KV, values: Any, scale: Any) -> Int8KV:
    """What an int8 buffer's parts are told (block specs), or stand for, in the buffer's form."""
    return jax.tree.unflatten(jax.tree.structure(buffer), [values, scale])


def two_parts(ref: Any) -> tuple[Any, Any]:
    """A buffer's reference in a kernel as that of its [.., S, H] part and that of its scales, or None."""
    return (ref.values, ref.scale) if isinstance(ref, Int8KV) else (ref, None)
