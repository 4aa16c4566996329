"""What the TPU kernels share."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float


def kernel_buffer(buffer: Float[Array, "B K S H"], padded: int, *, interpret: Any) -> jax.Array:
    """The KV buffer as a kernel's operand that is updated in place.

    On TPU it is held in HBM: the compiler would move a buffer that fits into VMEM there and back, all of it. The
    interpreter can't alias a buffer that it has to pad to whole blocks (``padded`` slots): there it is padded
    beforehand, with NaN, and the caller cuts the result.
    """
    if not interpret:
        return pltpu.with_memory_space_constraint(buffer, pltpu.HBM)
    more = padded - buffer.shape[2]
    return jnp.pad(buffer, ((0, 0), (0, 0), (0, more), (0, 0)), constant_values=jnp.nan)


def in_hbm(buffer: jax.Array) -> Any:
    """The kernel's result that takes the place of such an operand."""
    return pltpu.HBM(buffer.shape, buffer.dtype)
