"""Converted directories: the Decoder's weights in its own layout, so that nothing has to be transposed or split.

    config.json      as in a Hugging Face directory, written from the ModelConfig
    weights/         an Orbax checkpoint of a dictionary: dotted path -> array
    jkv.json         marks a converted directory: a format number, the dtype, and the CRC-32 of every file in weights/

The checksums are compared before Orbax reads a file, because Orbax answers a damaged one with pages of text from
several threads.
"""

import logging
import math
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike

from converters.config import read_config, write_config
from converters.fields import Fields
from converters.files import read_json, write_json
from converters.fill import Shard, abstract, fill, known_dtype, leaves
from converters.progress import track
from converters.shards import elided
from jkv.errors import UserError
from jkv.models import Decoder

MARKER, WEIGHTS = "jkv.json", "weights"
_FORMAT = 1
_CHUNK = 1 << 22  # bytes of a piece of a tensor: a device that holds a part of it reads whole pieces
_AGAIN = "convert the checkpoint again"


def is_converted(directory: Path) -> bool:
    """Whether a directory was made by `write_converted`."""
    return (directory / MARKER).exists()


def write_converted(model: Decoder, directory: str | Path) -> None:
    """Write a Decoder into a directory, which has to be there.

    ``jkv.json`` is written last, so that a directory that was left half-written doesn't pass for a converted one.
    """
    import orbax.checkpoint as ocp

    directory, arrays = Path(directory).resolve(), leaves(model)
    dtype = arrays["embed"].dtype.name
    with ocp.StandardCheckpointer() as checkpointer:
        pieces = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK), arrays)
        checkpointer.save(directory / WEIGHTS, arrays, save_args=pieces)
    write_config(model.config, directory, dtype)
    write_json(directory / MARKER, {"format": _FORMAT, "dtype": dtype, "files": _checksums(directory)})


def read_converted(
    directory: str | Path, dtype: DTypeLike | None = None, shard: Shard | None = None, weights: str | None = None
) -> Decoder:
    """Read a converted directory into a Decoder.

    Of several processes, each reads the pieces of weights that its devices hold a part of, and compares the checksums
    of its share of the files.

    Args:
        directory: the directory.
        dtype: of the Decoder's weights: float32, bfloat16 or float16; None for those of the directory.
        shard: the sharding that a leaf should have, by its dotted path and shape. Without it all leaves are on this
            process's first device.
        weights: 'int8' to quantise each matrix as it is read.

    Raises:
        UserError: a file is missing or damaged, or the weights aren't those that the config asks for.
    """
    import orbax.checkpoint as ocp

    directory = Path(directory).resolve()
    config = read_config(directory)
    marker = Fields(read_json(directory / MARKER), str(directory / MARKER))
    marker.integer("format", least=_FORMAT, most=_FORMAT)
    _check_files(directory, marker)
    wanted = known_dtype(dtype if dtype is not None else marker.text("dtype"))
    target = {}
    for path, leaf in leaves(abstract(config, wanted)).items():
        where = shard(path, leaf.shape) if shard else jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target[path] = jax.ShapeDtypeStruct(leaf.shape, wanted, sharding=where)
    # Orbax restores several tensors at a time and needs about twice their size: allow it as much as the largest needs.
    most = 1 + (2 * max(math.prod(leaf.shape) * wanted.itemsize for leaf in target.values()) >> 30)
    # Every process reads on its own, at its own time. By default Orbax makes processes wait for each other.
    process = jax.process_index()
    on_its_own = ocp.options.MultiprocessingOptions(process, {process}, f"host{process}")
    handler = ocp.StandardCheckpointHandler(restore_concurrent_gb=most, multiprocessing_options=on_its_own)
    with ocp.Checkpointer(handler, multiprocessing_options=on_its_own) as checkpointer:
        stored = _quietly(directory, lambda: dict(checkpointer.metadata(directory / WEIGHTS).item_metadata))
        _check_shapes(directory, stored, target)
        wanted_arrays = ocp.args.StandardRestore(target)
        arrays = _quietly(directory, lambda: checkpointer.restore(directory / WEIGHTS, args=wanted_arrays))
    # `pop` lets go of each array as it is filled in, so that it is freed once it has been quantised.
    return fill(config, wanted, ((path, arrays.pop(path)) for path in list(arrays)), weights)


def _quietly(directory: Path, call: Callable[[], Any]) -> Any:
    """What ``call`` returns, with one UserError for all that Orbax and TensorStore raise, and without what they log.

    They report a broken checkpoint by many types of exceptions, with pages of text.
    """
    logger = logging.getLogger("absl")
    disabled, logger.disabled = logger.disabled, True
    try:
        return call()
    except Exception as error:
        what = f"the Orbax checkpoint can't be read ({type(error).__name__})"
        raise UserError(what, where=str(directory / WEIGHTS), mend=_AGAIN) from None
    finally:
        logger.disabled = disabled


def _checksums(directory: Path, part: int = 0, parts: int = 1) -> dict[str, str]:
    """The CRC-32 of every file of weights, or of every ``parts``-th from number ``part`` on, by its path.

    Paths are relative to the directory, checksums hexadecimal. zlib releases Python's lock, so files are read in
    parallel.
    """
    files = _files(directory)[part::parts]
    with ThreadPoolExecutor() as pool:
        sums = list(track(pool.map(_crc32, files), "checking weights", len(files)))
    return {path.relative_to(directory).as_posix(): value for path, value in zip(files, sums, strict=True)}


def _files(directory: Path) -> list[Path]:
    """The files of weights, sorted."""
    return sorted(path for path in (directory / WEIGHTS).rglob("*") if path.is_file())


def _crc32(path: Path) -> str:
    """The CRC-32 of a file, hexadecimal."""
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 24):
            value = zlib.crc32(chunk, value)
    return f"{value:08x}"


def _check_files(directory: Path, marker: Fields) -> None:
    """Raise UserError if a file that ``jkv.json`` lists is missing or, of this process's share, damaged."""
    expected = marker.object("files")
    if expected is None:
        raise marker.error("files", "an object of checksums")
    found = _checksums(directory, jax.process_index(), jax.process_count())
    there = {path.relative_to(directory).as_posix() for path in _files(directory)}
    missing = [f"{name} is missing" for name in expected.data if name not in there]
    damaged = [f"{name} is damaged" for name, value in expected.data.items() if found.get(name, value) != value]
    if missing or damaged:
        raise UserError(elided(missing + damaged), where=str(directory), mend=_AGAIN)


def _check_shapes(directory: Path, tree: dict[str, Any], target: dict[str, jax.ShapeDtypeStruct]) -> None:
    """Raise UserError unless the stored weights (Orbax's metadata of each) are those of the config."""
    wrong = [f"{path} is missing" for path in target if path not in tree]
    wrong += [f"{path} is unknown" for path in tree if path not in target]
    wrong += [
        f"{path} is {list(tree[path].shape)}, expected {list(leaf.shape)}"
        for path, leaf in target.items()
        if path in tree and tuple(tree[path].shape) != leaf.shape
    ]
    wrong += [f"{path} is {tree[path].dtype}" for path in tree if not _is_float(tree[path].dtype)]
    if wrong:
        what = f"weights don't fit config.json: {elided(wrong)}"
        raise UserError(what, where=str(directory), mend=_AGAIN)


def _is_float(dtype: Any) -> bool:
    """Whether a dtype is one that weights may have."""
    return np.dtype(dtype).name in ("float32", "bfloat16", "float16")
