"""``load(name)``: a model with its config and tokenizer, from wherever it is."""

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from jkv.callable_module import make_callable
from jkv.errors import UserError
from jkv.files.locate import CHECKPOINTS, is_on_hub, locate
from jkv.models import Decoder
from jkv.models.config import ModelConfig

if TYPE_CHECKING:
    from converters.fill import Shard

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model ready to run.

    Attributes:
        model: with its weights.
        config: its sizes.
        tokenizer: a transformers tokenizer; None if the model's directory has none.
        name: what it was loaded by.
        path: its directory.
    """

    model: Decoder
    config: ModelConfig
    tokenizer: Any
    name: str
    path: Path


def load_model(name: str | Path = "demo-llama", *, dtype: str | None = None, weights: str | None = None) -> Loaded:
    """Load a model, from Python: ``model = jkv.load("demo-llama")``. Several calls of ``jkv.decode`` can share it.

    Args:
        name: demo-llama, demo-qwen, a Hugging Face directory, a converted directory, or a hub id 'org/name'.
        dtype: 'float32' or 'bfloat16' (default: float32 on CPU, bfloat16 elsewhere, whatever the checkpoint has).
        weights: 'int8' quantises the matrices; ``dtype`` is then that of the other weights.

    Returns:
        The model. Its ``config`` has the sizes, its ``tokenizer`` is a transformers tokenizer or None.

    Raises:
        UserError: there is no such model, it is damaged, or an argument has another value.
    """
    for argument, value, known in (("dtype", dtype, ("float32", "bfloat16")), ("weights", weights, ("int8",))):
        if value is not None and value not in known:
            mend = f"give {' or '.join(known)}, or leave it out"
            raise UserError(f"no {argument} {value!r}", where=argument, mend=mend)
    return load(name, default_dtype(dtype), weights=weights)


def default_dtype(dtype: str | None) -> str:
    """The dtype asked for, or what suits the platform: float32 on CPU, bfloat16 elsewhere."""
    return dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")


def load(
    name: str | Path, dtype: str | None = None, shard: "Shard | None" = None, weights: str | None = None
) -> Loaded:
    """Load a demo model, a Hugging Face directory, a converted directory, or a hub id 'org/name'.

    Args:
        name: which.
        dtype: 'float32', 'bfloat16' or 'float16'; None keeps the checkpoint's.
        shard: where each weight goes on a mesh, by its dotted path and shape (`jkv.distributed.weights`). By default
            all are on the default device.
        weights: 'int8' quantises the matrices (`jkv.models.quantized`); ``dtype`` is then that of the other weights.

    Raises:
        UserError: there is no such model, or it is damaged.
    """
    from converters.hf import read_hf
    from converters.orbax_io import is_converted, read_converted

    path = locate(name)
    model = (read_converted if is_converted(path) else read_hf)(path, dtype, shard, weights)
    return Loaded(model, model.config, load_tokenizer(path, model.config.vocab_size), str(name), path)


def model_config(name: str) -> ModelConfig:
    """The config of a model, which is downloaded if it is on the hub.

    Args:
        name: as for `load`.

    Raises:
        UserError: there is no such model, or its config can't be read.
    """
    from converters.config import read_config

    return read_config(locate(name))


def known_config(name: str) -> ModelConfig | None:
    """The config of a model, if it can be read without a network.

    Args:
        name: as for `load`.

    Returns:
        The config; None for a hub id.

    Raises:
        UserError: there is no such model, or its config can't be read.
    """
    return None if is_on_hub(name) else model_config(name)


def load_tokenizer(directory: Path, vocab_size: int) -> Any:
    """The tokenizer of a model. No code from its directory is run.

    Args:
        directory: the model's.
        vocab_size: the model's.

    Returns:
        A transformers tokenizer; None if the directory has none.

    Raises:
        UserError: it can't be read, or has token ids that the model hasn't.
    """
    if not any((directory / name).exists() for name in _TOKENIZER_FILES):
        return None
    # Without this transformers prints that PyTorch was not found. Nothing here needs it.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    try:
        tokenizer = _tokenizer_class(directory).from_pretrained(
            str(directory), trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # transformers and tokenizers raise plain Exceptions here
        reason = next(iter(str(error).splitlines()), "")
        raise UserError(f"the tokenizer can't be read ({reason})", where=str(directory)) from None
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= vocab_size:
        what = f"the tokenizer has token id {largest}, the model's vocab_size is {vocab_size}"
        raise UserError(what, where=str(directory), mend="the tokenizer belongs to another model")
    return tokenizer


def _tokenizer_class(directory: Path) -> Any:
    """The transformers class that reads a directory's tokenizer: AutoTokenizer, except for the demo models. It first
    imports code for all architectures, and PyTorch if that is installed, which would take seconds at every start."""
    import transformers

    of_demo = directory.parent == CHECKPOINTS
    return transformers.PreTrainedTokenizerFast if of_demo else transformers.AutoTokenizer


make_callable(__name__, load_model)
