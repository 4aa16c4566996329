"""``load(name)``: model, config and tokenizer, wherever they are."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax

from jkv.callable_module import make_callable
from jkv.errors import UserError
from jkv.files.locate import CHECKPOINTS, is_on_hub, locate
from jkv.models import Decoder
from jkv.models.config import ModelConfig

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model ready to run. ``tokenizer`` (a transformers tokenizer) is None when the directory has none."""

    model: Decoder
    config: ModelConfig
    tokenizer: Any
    name: str
    path: Path


def load_model(name: str | Path = "demo-llama", *, dtype: str | None = None, weights: str | None = None) -> Loaded:
    """Load a model, from Python: ``model = jkv.load("demo-llama")``, for several calls of ``jkv.decode``.

    name: demo-llama, demo-qwen, a Hugging Face directory, a converted directory, or a hub id 'org/name'.
    dtype: 'float32' or 'bfloat16' (default: float32 on CPU, bfloat16 elsewhere, whatever the checkpoint has).
    weights: 'int8' quantises the matrices; dtype is then that of the rest.
    ``.config`` of what is returned has the model's sizes, ``.tokenizer`` is a transformers tokenizer or None.

    Raises UserError when there is no such model or something is wrong with it.
    """
    for word, value, known in (("dtype", dtype, ("float32", "bfloat16")), ("weights", weights, ("int8",))):
        if value is not None and value not in known:
            raise UserError(f"no {word} {value!r}", where=word, mend=f"give {' or '.join(known)}, or leave it out")
    return load(name, default_dtype(dtype), weights=weights)


def default_dtype(dtype: str | None) -> str:
    """The dtype asked for, or what suits the platform: float32 on CPU, bfloat16 elsewhere."""
    return dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")


def load(name: str | Path, dtype: Any = None, shard: Any = None, weights: str | None = None) -> Loaded:
    """Load a demo model, a Hugging Face directory, a converted directory, or a hub id 'org/name'.

    dtype: 'float32', 'bfloat16' or 'float16'; None keeps the checkpoint's.
    shard: the sharding of a leaf by dotted path and shape (for a mesh); by default all are on the default device.
    weights: 'int8' quantises the matrices (`jkv.models.quantized`); dtype is then that of the rest.
    Raises UserError when there is no such model or something is wrong with it.
    """
    from converters.hf import read_hf
    from converters.orbax_io import is_converted, read_converted

    path = locate(name)
    model = (read_converted if is_converted(path) else read_hf)(path, dtype, shard, weights)
    return Loaded(model, model.config, load_tokenizer(path, model.config.vocab_size), str(name), path)


def model_config(name: str) -> ModelConfig:
    """A model's config, fetched from the hub if that is where it is. Raises UserError if ``locate`` would."""
    from converters.config import read_config

    return read_config(locate(name))


def known_config(name: str) -> ModelConfig | None:
    """A model's config, where it can be read without a network; else None. Raises UserError if ``locate`` would."""
    return None if is_on_hub(name) else model_config(name)


def load_tokenizer(directory: Path, vocab_size: int) -> Any:
    """The transformers tokenizer of a directory, or None if it has none. No code from the directory is run.

    Raises UserError when it can't be read, or has token ids that a model of ``vocab_size`` tokens doesn't.
    """
    if not any((directory / name).exists() for name in _TOKENIZER_FILES):
        return None
    # Else its first words are that PyTorch was not found, which nothing here wants.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    try:
        tokenizer = _tokenizer_class(directory).from_pretrained(
            str(directory), trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # transformers and tokenizers raise bare Exceptions here
        reason = next(iter(str(error).splitlines()), "")
        raise UserError(f"the tokenizer can't be read ({reason})", where=str(directory)) from None
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= vocab_size:
        what = f"the tokenizer has token id {largest}, the model's vocab_size is {vocab_size}"
        raise UserError(what, where=str(directory), mend="the tokenizer belongs to another model")
    return tokenizer


def _tokenizer_class(directory: Path) -> Any:
    """What reads a directory's tokenizer: AutoTokenizer, but for the demo models, as it first imports what knows all
    architectures, and PyTorch where it is installed: seconds at every start."""
    import transformers

    of_demo = directory.parent == CHECKPOINTS
    return transformers.PreTrainedTokenizerFast if of_demo else transformers.AutoTokenizer


make_callable(__name__, load_model)
