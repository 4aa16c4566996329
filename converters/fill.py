"""Making a Decoder of arrays: every leaf has to come exactly once, and no random weights are made on the way."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from jkv.errors import UserError
from jkv.models import Decoder
from jkv.models.config import ModelConfig
from jkv.models.quantized import INT8, quantize_weight

# From a leaf's dotted path and shape to the sharding that it should have.
Shard = Callable[[str, tuple[int, ...]], jax.sharding.Sharding]
_DTYPES = ("float32", "bfloat16", "float16")


def known_dtype(dtype: DTypeLike) -> np.dtype:
    """A dtype that a checkpoint may have.

    Args:
        dtype: its name or scalar type.

    Raises:
        UserError: it is none of float32, bfloat16 and float16.
    """
    try:
        wanted = jnp.dtype(dtype)
    except TypeError:
        wanted = None
    if wanted is None or wanted.name not in _DTYPES:
        raise UserError(f"dtype is {getattr(wanted, 'name', dtype)}, expected one of {', '.join(_DTYPES)}")
    return wanted


def leaves(model: Decoder) -> dict[str, Any]:
    """Every parameter of a model by its dotted path, as 'layers.0.attention.q.kernel'."""
    return {".".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))}


def abstract(config: ModelConfig, dtype: DTypeLike) -> Decoder:
    """A Decoder with a shape and a dtype in place of every array. It takes no memory."""
    return nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0), dtype=dtype))


def fill(
    config: ModelConfig, dtype: DTypeLike, arrays: Iterable[tuple[str, jax.Array]], weights: str | None = None
) -> Decoder:
    """A Decoder made of arrays.

    Args:
        config: the model's.
        dtype: of all arrays.
        arrays: (dotted path, array) of every leaf, in any order.
        weights: 'int8' to quantise each matrix as it comes.

    Raises:
        ValueError: a leaf comes twice or never, isn't in the model, or has another shape or dtype.
    """
    graph, state = nnx.split(abstract(config, dtype))
    waiting = {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}
    for path, array in arrays:
        leaf = waiting.pop(path, None)
        if leaf is None:
            raise ValueError(f"{path} is not a leaf of the model, or came twice")
        if leaf.shape != array.shape or array.dtype != jnp.dtype(dtype):
            raise ValueError(f"{path} is {array.dtype}{array.shape}, the model has {jnp.dtype(dtype)}{leaf.shape}")
        leaf.set_value(quantize_weight(path, array) if weights == INT8 else array)
    if waiting:
        raise ValueError(f"leaves never filled: {', '.join(waiting)}")
    return nnx.merge(graph, state)
