"""A model's config and the shapes of its weights, without the weights: enough to compile its programs."""

import pathlib

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from converters.config import from_hf, read_config
from converters.files import read_json
from jkv.errors import UserError
from jkv.files.locate import DEMOS, locate
from jkv.files.shipped import MODELS, OF_HUB
from jkv.models import Decoder
from jkv.models.config import ModelConfig
from jkv.models.quantized import INT8, quantize_decoder

# Sizes of the two hidden layers of DynTS's published predictors (arXiv:2601.18383), the same for every D.
PUBLISHED_WIDTHS = (8192, 2048)


def shipped() -> list[str]:
    """Names of the models whose configs come with jkv, in ``configs/models``."""
    return sorted(path.stem for path in MODELS.glob("*.json"))


def model_config(name: str) -> ModelConfig:
    """A model's config. Its weights are not read.

    Args:
        name: one of `shipped` or its id on the Hugging Face hub; a demo model; a Hugging Face or converted directory.

    Raises:
        UserError: there is no such model, or its config can't be read.
    """
    known = OF_HUB.get(name, name)
    if known in shipped():
        path = MODELS / f"{known}.json"
        return from_hf(read_json(path), where=str(path))
    if name not in DEMOS and not pathlib.Path(name).expanduser().is_dir():
        tried = f"not one of {', '.join((*shipped(), *DEMOS))}, not a directory"
        raise UserError(f"no such model: {name!r} is {tried}", where="--model")
    return read_config(locate(name))


def abstract_decoder(config: ModelConfig, dtype: DTypeLike, weights: str | None = None) -> Decoder:
    """A model with shapes and dtypes in place of its weights, which takes no memory.

    Args:
        config: its config.
        dtype: of its weights.
        weights: 'int8' for a model whose matrices are that, with scales beside them.
    """

    def make() -> Decoder:
        """The model, with weights: `nnx.eval_shape` only follows the shapes."""
        model = Decoder(config, rngs=nnx.Rngs(0), dtype=jnp.dtype(dtype))
        if weights == INT8:
            quantize_decoder(model)
        return model

    return nnx.eval_shape(make)
