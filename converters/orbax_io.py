"""Converted directories: an Orbax checkpoint in the Decoder's layout, loaded without transposing or splitting.

    config.json      as for Hugging Face, written from the ModelConfig
    weights/         Orbax; a flat dictionary, dotted path -> array
    jkv.json         what makes it a converted directory: format number, dtype, and the CRC-32 of every file in weights/

The checksums are verified before Orbax sees a file: it meets a damaged one with pages of text from several threads.
"""

import logging
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

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
_AGAIN = "convert the checkpoint again"


def is_converted(directory: Path) -> bool:
    """Whether ``write_converted`` made this directory."""
    return (directory / MARKER).exists()


def write_converted(model: Decoder, directory: str | Path) -> None:
    """Write ``model`` into an existing directory. ``jkv.json`` comes last: without it the directory isn't converted."""
    import orbax.checkpoint as ocp

    directory, arrays = Path(directory).resolve(), leaves(model)
    dtype = arrays["embed"].dtype.name
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory / WEIGHTS, arrays)
    write_config(model.config, directory, dtype)
    write_json(directory / MARKER, {"format": _FORMAT, "dtype": dtype, "files": _checksums(directory)})


def read_converted(directory: str | Path, dtype: Any = None, shard: Shard | None = None) -> Decoder:
    """The Decoder of a converted directory. Arguments as for ``read_hf``.

    Raises UserError when a file is missing or torn, or the weights aren't those that the config asks for.
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
        where = shard(path, leaf.shape) if shard else jax.sharding.SingleDeviceSharding(jax.devices()[0])
        target[path] = jax.ShapeDtypeStruct(leaf.shape, wanted, sharding=where)
    with ocp.StandardCheckpointer() as checkpointer:
        stored = _guarded(directory, lambda: dict(checkpointer.metadata(directory / WEIGHTS).item_metadata))
        _check_shapes(directory, stored, target)
        arrays = _guarded(directory, lambda: checkpointer.restore(directory / WEIGHTS, target))
    return fill(config, wanted, arrays.items())


def _guarded(directory: Path, call: Callable[[], Any]) -> Any:
    # Orbax and TensorStore report a broken checkpoint with a dozen exception types and pages of text, and log it too.
    logger = logging.getLogger("absl")
    disabled, logger.disabled = logger.disabled, True
    try:
        return call()
    except Exception as error:
        what = f"the Orbax checkpoint can't be read ({type(error).__name__})"
        raise UserError(what, where=str(directory / WEIGHTS), mend=_AGAIN) from None
    finally:
        logger.disabled = disabled


def _checksums(directory: Path) -> dict[str, str]:
    # Path below ``directory`` -> CRC-32 in hexadecimal. Files are read in parallel: zlib releases the GIL.
    files = sorted(path for path in (directory / WEIGHTS).rglob("*") if path.is_file())
    with ThreadPoolExecutor() as pool:
        sums = list(track(pool.map(_crc32, files), "checking weights", len(files)))
    return {path.relative_to(directory).as_posix(): value for path, value in zip(files, sums, strict=True)}


def _crc32(path: Path) -> str:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 24):
            value = zlib.crc32(chunk, value)
    return f"{value:08x}"


def _check_files(directory: Path, marker: Fields) -> None:
    expected = marker.object("files")
    if expected is None:
        raise marker.error("files", "an object of checksums")
    found = _checksums(directory)
    missing = [f"{name} is missing" for name in expected.data if name not in found]
    damaged = [f"{name} is damaged" for name, value in expected.data.items() if found.get(name, value) != value]
    if missing or damaged:
        raise UserError(elided(missing + damaged), where=str(directory), mend=_AGAIN)


def _check_shapes(directory: Path, tree: dict[str, Any], target: dict[str, jax.ShapeDtypeStruct]) -> None:
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
    return np.dtype(dtype).name in ("float32", "bfloat16", "float16")
