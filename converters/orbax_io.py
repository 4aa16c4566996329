"""Converted directories: an Orbax checkpoint in the Decoder's layout, loaded without transposing or splitting.

    config.json      as for Hugging Face, written from the ModelConfig
    weights/         Orbax; a flat dictionary, dotted path -> array
    jkv.json         what makes it a converted directory: format number, dtype, and the CRC-32 of every file in weights/

The checksums are verified before Orbax sees a file: it meets a damaged one with pages of text from several threads.
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
_CHUNK = 1 << 22  # bytes: what is read at least, where a device holds a part of a tensor
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
        pieces = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK), arrays)
        checkpointer.save(directory / WEIGHTS, arrays, save_args=pieces)
    write_config(model.config, directory, dtype)
    write_json(directory / MARKER, {"format": _FORMAT, "dtype": dtype, "files": _checksums(directory)})


def read_converted(
    directory: str | Path, dtype: Any = None, shard: Shard | None = None, weights: str | None = None
) -> Decoder:
    """The Decoder of a converted directory. Arguments as for ``read_hf``; of a tensor a process reads the chunks that
    its devices have a part in. Checksums are shared, too: each process reads its share of the files for them.

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
        where = shard(path, leaf.shape) if shard else jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target[path] = jax.ShapeDtypeStruct(leaf.shape, wanted, sharding=where)
    # It has many tensors in flight at a time, twice in memory each: so much of them.
    most = 1 + (2 * max(math.prod(leaf.shape) * wanted.itemsize for leaf in target.values()) >> 30)
    # Each of several processes reads for itself, when it comes to it: Orbax would let them wait for each other.
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(me, {me}, f"host{me}")
    handler = ocp.StandardCheckpointHandler(restore_concurrent_gb=most, multiprocessing_options=alone)
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
        stored = _guarded(directory, lambda: dict(checkpointer.metadata(directory / WEIGHTS).item_metadata))
        _check_shapes(directory, stored, target)
        wish = ocp.args.StandardRestore(target)
        arrays = _guarded(directory, lambda: checkpointer.restore(directory / WEIGHTS, args=wish))
    # Let go of each as it is filled in: what is quantised then needn't be there twice.
    return fill(config, wanted, ((path, arrays.pop(path)) for path in list(arrays)), weights)


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


def _checksums(directory: Path, part: int = 0, parts: int = 1) -> dict[str, str]:
    # Path below ``directory`` -> CRC-32 in hexadecimal. Files are read in parallel: zlib releases the GIL.
    files = _files(directory)[part::parts]
    with ThreadPoolExecutor() as pool:
        sums = list(track(pool.map(_crc32, files), "checking weights", len(files)))
    return {path.relative_to(directory).as_posix(): value for path, value in zip(files, sums, strict=True)}


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in (directory / WEIGHTS).rglob("*") if path.is_file())


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
    found = _checksums(directory, jax.process_index(), jax.process_count())
    there = {path.relative_to(directory).as_posix() for path in _files(directory)}
    missing = [f"{name} is missing" for name in expected.data if name not in there]
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
