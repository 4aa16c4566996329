"""int8 weights (``--weights int8``): quantising matrices, and contracting with them.

Only weights are int8; activations, norms and biases are not. A matrix has one float32 scale for each output channel,
and is stored as qwix's QArray. A contraction reads the integers and multiplies its float32 result by the scale, so that
no dequantised copy of a weight is made. An embedding has one scale for each token, which is right for a tied head, too.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from qwix import QArray, quantize

from jkv.axes import Array, Float, Int
from jkv.models.letters import weight_letters

Weight = jax.Array | QArray
INT8 = "int8"
# The output channels of each kind of matrix: the axes that are left when it is contracted.
_CHANNELS = {"VD": "V", "DV": "V", "DNH": "NH", "DKH": "KH", "NHD": "D", "DF": "F", "FD": "D"}


def quantize_weight(path: str, weight: jax.Array) -> Weight:
    """Quantise a decoder's weight if it is a matrix; others are returned as they are.

    A channel's scale is its largest magnitude over 127, in float32.

    Args:
        path: the weight's dotted path in the decoder.
        weight: the weight.

    Raises:
        KeyError: no decoder has such a path.
    """
    letters = weight_letters(path)
    channels = _CHANNELS.get(letters)
    if channels is None:
        return weight
    return _quantize(weight, tuple(axis for axis, letter in enumerate(letters) if letter in channels))


@jax.jit(static_argnums=1)
def _quantize(weight: jax.Array, channels: tuple[int, ...]) -> QArray:
    # In float32, because a quotient in bfloat16 would be rounded twice. XLA fuses it all, without a float32 copy.
    return quantize(weight.astype(jnp.float32), jnp.int8, channelwise_axes=channels)


def quantize_decoder(model: nnx.Module) -> None:
    """Make the matrices of a decoder int8 in place, one at a time, so that memory holds one of them twice at most."""
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        variable.set_value(quantize_weight(".".join(map(str, path)), variable.get_value()))


def contract(spec: str, x: jax.Array, kernel: Weight, *, preferred_element_type: DTypeLike | None = None) -> jax.Array:
    """``einsum(spec, x, kernel)`` for a kernel that may be int8.

    Args:
        spec: the einsum's; it ends with the kernel's channels, in the kernel's order.
        x: the activations.
        kernel: the weight.
        preferred_element_type: the result's dtype; None means that of x.
    """
    if not isinstance(kernel, QArray):
        return jnp.einsum(spec, x, kernel, preferred_element_type=preferred_element_type)
    axes, out = spec.split(",")[1].split("->")
    raw = jnp.einsum(spec, x, kernel.qvalue.astype(x.dtype), preferred_element_type=jnp.float32)
    scale = jnp.squeeze(kernel.scale, [axis for axis, letter in enumerate(axes) if letter not in out])
    scaled = raw * jax.lax.expand_dims(scale, range(raw.ndim - scale.ndim))
    return scaled.astype(preferred_element_type or x.dtype)


def embed_tokens(table: Weight, tokens: Int[Array, "B T"], dtype: DTypeLike) -> Float[Array, "B T D"]:
    """The tokens' embeddings.

    Args:
        table: the embedding, [V, D].
        tokens: token ids.
        dtype: the result's, if the embedding is int8. Otherwise it has the embedding's own.
    """
    if not isinstance(table, QArray):
        return table[tokens]
    return (table.qvalue[tokens].astype(jnp.float32) * table.scale[tokens]).astype(dtype)
