"""Models whose config is enough: those that come with jkv, the demos, and directories. Weights are not read."""

import pathlib

from converters.config import from_hf, read_config
from converters.files import read_json
from jkv.errors import UserError
from jkv.files.locate import DEMOS, locate
from jkv.files.shipped import MODELS, OF_HUB
from jkv.models.config import ModelConfig

PUBLISHED_WIDTHS = (8192, 2048)  # of dynts's published predictors, whatever the model's D


def shipped() -> list[str]:
    """Names of the models whose configs come with jkv."""
    return sorted(path.stem for path in MODELS.glob("*.json"))


def model_config(name: str) -> ModelConfig:
    """The config of a shipped model, a demo, or a directory, without its weights. Raises UserError if there is none."""

    known = OF_HUB.get(name, name)
    if known in shipped():
        path = MODELS / f"{known}.json"
        return from_hf(read_json(path), where=str(path))
    if name not in DEMOS and not pathlib.Path(name).expanduser().is_dir():
        tried = f"not one of {', '.join((*shipped(), *DEMOS))}, not a directory"
        raise UserError(f"no such model: {name!r} is {tried}", where="--model")
    return read_config(locate(name))
