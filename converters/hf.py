"""Hugging Face checkpoints: reading one into a Decoder, and writing one. A tensor is converted at a time."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.typing import DTypeLike

from converters.config import read_config, write_config
from converters.fill import Shard, fill, known_dtype, leaves
from converters.progress import track
from converters.sharded import sharded_leaf
from converters.shards import DTYPES, Outgoing, Stored, elided, opened, write
from converters.tables import EMBEDDING, HEAD, IGNORED, Row, rows
from jkv.errors import UserError
from jkv.models import Decoder
from jkv.models.config import ModelConfig
from jkv.models.predictor import NAMES as PREDICTOR

_ROWS = 4096  # rows of an embedding that are compared at a time


def read_hf(
    directory: str | Path, dtype: DTypeLike | None = None, shard: Shard | None = None, weights: str | None = None
) -> Decoder:
    """Read a Hugging Face directory (Llama, Qwen2 or Qwen3, in safetensors) into a Decoder.

    Args:
        directory: the directory.
        dtype: of the Decoder's weights: float32, bfloat16 or float16; None for the file's. Weights that have it already
            keep their bits.
        shard: the sharding that a leaf should have, by its dotted path and shape. Of each tensor only what this
            process's devices hold is read. Without it all leaves are on the default device.
        weights: 'int8' to quantise each matrix as it is read.

    Raises:
        UserError: the config isn't supported; tensors are missing, unknown or have another shape (one message has all
            of them); a file is damaged; a weight is NaN or infinite, or too large for ``dtype``.
    """
    directory = Path(directory)
    config = read_config(directory)
    with opened(directory) as stored:
        table = {row.name: row for row in rows(config)}
        _check(config, table, stored, directory)
        wanted = known_dtype(dtype) if dtype is not None else _common_dtype(table, stored, directory)
        if config.tied_head and HEAD in stored:
            _check_tied(stored[EMBEDDING], stored[HEAD])

        def arrays() -> Iterator[tuple[str, jax.Array]]:
            """Each leaf, read when it is asked for."""
            for row in track(table.values(), "reading weights", len(table)):
                read = functools.partial(_read, stored[row.name], wanted)
                if shard is None:
                    yield row.path, jax.device_put(row.to_leaf(read(), config))
                else:
                    yield row.path, sharded_leaf(read, row, config, shard(row.path, row.leaf_shape(config)))

        return fill(config, wanted, arrays(), weights)


def write_hf(
    model: Decoder, directory: str | Path, dtype: DTypeLike | None = None, max_shard_bytes: int = 5 * 10**9
) -> None:
    """Write a Decoder as a Hugging Face directory, which transformers loads.

    Args:
        model: the Decoder.
        directory: made if it isn't there; a checkpoint in it is replaced.
        dtype: of the files; None for the model's.
        max_shard_bytes: bytes of weights in a file at most. If there are more, several files and an index are written.

    Raises:
        UserError: transformers has no form for the model's config.
    """
    config, directory, have = model.config, Path(directory), leaves(model)
    wanted = known_dtype(dtype) if dtype is not None else have["embed"].dtype

    def outgoing(row: Row) -> Outgoing:
        """The tensor of a row, to be made when it is written."""

        def make() -> np.ndarray:
            """Its data."""
            return row.to_file(np.asarray(jax.device_get(have[row.path])), config).astype(wanted)

        return Outgoing(row.name, wanted, row.file_shape(config), make)

    directory.mkdir(parents=True, exist_ok=True)
    write(directory, [outgoing(row) for row in rows(config)], max_shard_bytes)
    write_config(config, directory, wanted.name)


def read_predictor(directory: str | Path) -> dict[str, np.ndarray]:
    """The importance predictor that DynTS's published checkpoints have beside the model.

    Args:
        directory: a Hugging Face directory.

    Returns:
        Its tensors is_head.0|2|4.weight, in float32, whatever their shapes; empty if there is none.

    Raises:
        UserError: one of them is missing, or holds NaN or infinity.
    """
    with opened(Path(directory)) as stored:
        found = [name for name in PREDICTOR if name in stored]
        if found and len(found) < len(PREDICTOR):
            missing = [name for name in PREDICTOR if name not in stored]
            raise UserError(f"the predictor is incomplete: {elided(missing)} missing", where=str(directory))
        tensors = {name: stored[name].read() for name in found}
    for name, tensor in tensors.items():
        if not _finite(tensor):
            raise UserError(f"{name} holds NaN or infinity", where=str(directory), mend="download it again")
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


def _common_dtype(table: dict[str, Row], stored: dict[str, Stored], directory: Path) -> np.dtype:
    """The dtype of all weights. Raises UserError if they have several."""
    codes = sorted({stored[name].code for name in table})
    if len(codes) > 1:
        raise UserError(f"the weights mix {' and '.join(codes)}", where=str(directory), mend="ask for one dtype")
    return DTYPES[codes[0]]


def _check(config: ModelConfig, table: dict[str, Row], stored: dict[str, Stored], directory: Path) -> None:
    """Raise UserError unless the stored tensors are those of the table, with its shapes.

    A wrong vocabulary size has a message of its own, since otherwise it would look like two tensors of a wrong shape.
    """
    if EMBEDDING in stored and len(stored[EMBEDDING].shape) == 2:
        height = stored[EMBEDDING].shape[0]
        if height != config.vocab_size:
            what = f"wrong vocabulary size: vocab_size is {config.vocab_size}, {EMBEDDING} has {height} rows"
            raise UserError(what, where=str(directory / "config.json"))
    missing = [name for name in table if name not in stored]
    unknown = [name for name in stored if name not in table and not _ignorable(name, config)]
    wrong = []
    for name, row in table.items():
        if name in stored:
            tensor, shape = stored[name], row.file_shape(config)
            if tensor.shape != shape:
                wrong.append(f"{name} is {list(tensor.shape)}, expected {list(shape)}")
            if tensor.code not in DTYPES:
                wrong.append(f"{name} is {tensor.code}, expected {', '.join(DTYPES)}")
    lists = {"missing": missing, "unknown": unknown, "misshapen": wrong}
    if missing or unknown or wrong:
        what = "; ".join(f"{len(names)} {kind}: {elided(names)}" for kind, names in lists.items() if names)
        raise UserError(f"tensors don't fit a {config.architecture} of this config: {what}", where=str(directory))


def _ignorable(name: str, config: ModelConfig) -> bool:
    """Whether a tensor that is not in the table may be in the file."""
    return bool(IGNORED.fullmatch(name)) or name in PREDICTOR or (config.tied_head and name == HEAD)


def _check_tied(embedding: Stored, head: Stored) -> None:
    """Raise UserError unless the head of a tied model equals its embedding."""
    same = head.code == embedding.code and head.shape == embedding.shape
    for start in range(0, head.shape[0] if same else 0, _ROWS):
        rows = slice(start, min(start + _ROWS, head.shape[0])), slice(0, head.shape[1])
        same = same and np.array_equal(_bits(head.read(rows)), _bits(embedding.read(rows)))
    if not same:
        what = f"tie_word_embeddings is true, but {HEAD} differs from {EMBEDDING}"
        raise UserError(what, where=str(head.file), mend="set tie_word_embeddings to false in config.json")


def _read(tensor: Stored, dtype: np.dtype, box: Sequence[slice] | None = None) -> np.ndarray:
    """A tensor, or a box of it, in ``dtype``. Raises UserError unless all of it is finite."""
    data = tensor.read(box)
    if not _finite(data):
        raise UserError(f"{tensor.name} holds NaN or infinity", where=str(tensor.file), mend="download it again")
    if data.dtype != dtype:
        with np.errstate(over="ignore"):
            data = data.astype(dtype)
        if not _finite(data):
            raise UserError(f"{tensor.name} holds values beyond {dtype.name}", where=str(tensor.file))
    return data


def _bits(data: np.ndarray) -> np.ndarray:
    """The elements' bits as unsigned integers, flattened."""
    return data.reshape(-1).view(f"uint{8 * data.dtype.itemsize}")


def _finite(data: np.ndarray) -> bool:
    """Whether no element is NaN or infinite: these have every bit of the exponent set.

    Comparing bits is fast for bfloat16, too, and doing it in chunks takes no second copy of the data.
    """
    bits, chunk = _bits(data), 1 << 22
    exponent = bits.dtype.type(_bits(np.array([np.inf], data.dtype))[0])
    return not any(np.any((bits[i : i + chunk] & exponent) == exponent) for i in range(0, bits.size, chunk))
