"""int8 weights: a scale for each output channel (qwix's QArray), and what contracts with them.

Weight-only: activations stay as they are. A contraction reads int8 and multiplies its float32 result by the scale, so
no dequantised copy of a weight is made. An embedding has a scale a token, which serves it as a head, too. Norms and
biases are kept.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from qwix import QArray, quantize

from jkv.axes import Array, Float, Int
from jkv.models.letters import weight_letters

Weight = jax.Array | QArray
INT8 = "int8"
# Of each matrix the axes that its contraction leaves.
_CHANNELS = {"VD": "V", "DV": "V", "DNH": "NH", "DKH": "KH", "NHD": "D", "DF": "F", "FD": "D"}


def quantize_weight(path: str, weight: jax.Array) -> Weight:
    """A decoder's weight by its dotted path, as int8 if it is a matrix; scales are float32, of the largest magnitude of
    their channel over 127."""
    letters = weight_letters(path)
    channels = _CHANNELS.get(letters)
    if channels is None:
        return weight
    return _quantize(weight, tuple(axis for axis, letter in enumerate(letters) if letter in channels))


@jax.jit(static_argnums=1)
def _quantize(weight: jax.Array, channels: tuple[int, ...]) -> QArray:
    # In float32, as a quotient of bfloat16 would be rounded twice. All of it is fused: no float32 copy is made.
    return quantize(weight.astype(jnp.float32), jnp.int8, channelwise_axes=channels)


def quantize_decoder(model: nnx.Module) -> None:
    """Make the matrices of a decoder int8, one at a time."""
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        variable.set_value(quantize_weight(".".join(map(str, path)), variable.get_value()))


def contract(spec: str, x: jax.Array, kernel: Weight, *, preferred_element_type: Any = None) -> jax.Array:
    """``einsum(spec, x, kernel)`` of a kernel that may be int8. The spec ends with the kernel's channels, in its
    order."""
    if not isinstance(kernel, QArray):
        return jnp.einsum(spec, x, kernel, preferred_element_type=preferred_element_type)
    axes, out = spec.split(",")[1].split("->")
    raw = jnp.einsum(spec, x, kernel.qvalue.astype(x.dtype), preferred_element_type=jnp.float32)
    scale = jnp.squeeze(kernel.scale, [axis for axis, letter in enumerate(axes) if letter not in out])
    scaled = raw * jax.lax.expand_dims(scale, range(raw.ndim - scale.ndim))
    return scaled.astype(preferred_element_type or x.dtype)


def embed_tokens(table: Weight, tokens: Int[Array, "B T"], dtype: Any) -> Float[Array, "B T D"]:
    """The tokens' rows of an embedding [V, D]."""
    if not isinstance(table, QArray):
        return table[tokens]
    return (table.qvalue[tokens].astype(jnp.float32) * table.scale[tokens]).astype(dtype)
