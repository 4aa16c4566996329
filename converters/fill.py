"""A Decoder out of arrays: every leaf exactly once, and no random weights made on the way."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jkv.errors import UserError
from jkv.models import Decoder
from jkv.models.config import ModelConfig
from jkv.models.quantized import INT8, quantize_weight

Shard = Callable[[str, tuple[int, ...]], jax.sharding.Sharding]
_DTYPES = ("float32", "bfloat16", "float16")


def known_dtype(dtype: Any) -> np.dtype:
    """A name or scalar type as one of float32, bfloat16, float16; UserError otherwise."""
    try:
        wanted = jnp.dtype(dtype)
    except TypeError:
        wanted = None
    if wanted is None or wanted.name not in _DTYPES:
        raise UserError(f"dtype is {getattr(wanted, 'name', dtype)}, expected one of {', '.join(_DTYPES)}")
    return wanted


def leaves(model: Decoder) -> dict[str, Any]:
    """Dotted path, e.g. 'layers.0.attention.q.kernel', -> array, of every parameter."""
    return {".".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))}


def abstract(config: ModelConfig, dtype: Any) -> Decoder:
    """The Decoder with a shape and dtype in place of every array: it costs no memory."""
    return nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0), dtype=dtype))


def fill(
    config: ModelConfig, dtype: Any, arrays: Iterable[tuple[str, jax.Array]], weights: str | None = None
) -> Decoder:
    """The Decoder of ``config`` whose leaf at each dotted path is the given array. weights: 'int8' quantises each
    matrix as it comes.

    Raises ValueError when a leaf comes twice, never, with another shape or dtype, or isn't in the model.
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
