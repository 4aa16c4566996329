"""Safetensors files: which ones make up a checkpoint, what they hold, and writing them one tensor at a time."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from converters.files import read_json, write_json
from converters.ranges import read_box
from jkv.errors import UserError
from jkv.files.whole import replacing

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F32": jnp.dtype("float32"), "F16": jnp.dtype("float16"), "BF16": jnp.dtype("bfloat16")}
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_NUMPY = {**DTYPES, "F64": np.dtype("float64")}
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor in a file: dtype code as in the header (F32, BF16, ...) and shape, read without its data.

    descriptor: of the open file.  offset: bytes of the file before the data.
    """

    file: Path
    name: str
    code: str
    shape: tuple[int, ...]
    descriptor: int
    offset: int

    def read(self, box: Sequence[slice] | None = None) -> np.ndarray:
        """The data, or a box of it, in the file's dtype. Raises UserError when the file can't be read."""
        with _readable(self.file):
            return read_box(self.descriptor, self.offset, self.shape, _NUMPY[self.code], box)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise UserError("no such file", where=str(path), mend="download the checkpoint again") from None
    except OSError as error:
        raise UserError(f"can't be read ({error.strerror or error})", where=str(path)) from None
    except SafetensorError as error:
        mend = "the file is torn or not safetensors: download it again"
        raise UserError(f"can't be read as safetensors ({error})", where=str(path), mend=mend) from None


@contextlib.contextmanager
def opened(directory: Path) -> Iterator[dict[str, Stored]]:
    """Name -> tensor of a checkpoint, one file or sharded; the files stay open within the block.

    Raises UserError when there are no safetensors, a file is torn or missing, or the index and the files disagree.
    """
    with contextlib.ExitStack() as stack:
        if (directory / SINGLE).exists():
            yield _tensors(directory / SINGLE, stack)
        elif (directory / INDEX).exists():
            yield _indexed(directory, stack)
        else:
            raise _no_weights(directory)


def _tensors(path: Path, stack: contextlib.ExitStack) -> dict[str, Stored]:
    with _readable(path):
        with safe_open(path, framework="np") as checked:  # a header that isn't whole and sound is refused here
            views = {name: checked.get_slice(name) for name in checked.keys()}  # noqa: SIM118 (not a mapping)
            kinds = {name: (view.get_dtype(), tuple(view.get_shape())) for name, view in views.items()}
        file = stack.enter_context(path.open("rb"))
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        start = 8 + size
        return {
            name: Stored(path, name, code, shape, file.fileno(), start + header[name]["data_offsets"][0])
            for name, (code, shape) in kinds.items()
        }


def _indexed(directory: Path, stack: contextlib.ExitStack) -> dict[str, Stored]:
    where = str(directory / INDEX)
    weight_map = read_json(directory / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError("weight_map is missing, empty or not an object", where=where)
    for name, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise UserError(f"weight_map[{name!r}] is {file!r}, expected the name of a .safetensors file", where=where)
    files = sorted(set(weight_map.values()))
    absent = [file for file in files if not (directory / file).exists()]
    if absent:
        raise UserError(f"names files that aren't there: {elided(absent)}", where=where, mend="download them again")
    found: dict[str, Stored] = {}
    problems = []
    for file in files:
        for name, tensor in _tensors(directory / file, stack).items():
            if weight_map.get(name) == file:
                found[name] = tensor
            else:
                problems.append(f"{name} is in {file}, the index says {weight_map.get(name, 'nothing of it')}")
    problems += [f"{name} isn't in {file}" for name, file in weight_map.items() if name not in found]
    if problems:
        raise UserError(f"index and files disagree: {elided(problems)}", where=where)
    return found


def _no_weights(directory: Path) -> UserError:
    pickles = sorted(path.name for path in directory.glob("*") if path.suffix in _PICKLES)
    if pickles:
        mend = "only safetensors are read, never pickles: save the model again with safe_serialization=True"
        return UserError(f"the weights are pickles ({elided(pickles)})", where=str(directory), mend=mend)
    return UserError(f"no weights: neither {SINGLE} nor {INDEX} is there", where=str(directory))


def elided(items: list[str], keep: int = 10) -> str:
    """'a, b, c', or the first ten and how many there are."""
    more = f", ... ({len(items)} in all)" if len(items) > keep else ""
    return ", ".join(items[:keep]) + more


@dataclasses.dataclass(frozen=True)
class Outgoing:
    """A tensor to be written: ``make`` is called when its turn comes, so that only one is in memory at a time."""

    name: str
    dtype: Any
    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * jnp.dtype(self.dtype).itemsize


def write(directory: Path, tensors: list[Outgoing], max_shard_bytes: int) -> None:
    """Write model.safetensors, or shards of at most ``max_shard_bytes`` (one tensor at least) and their index.

    Each file appears complete or not at all. Weights of an earlier model in the directory are removed after that.
    """
    shards: list[list[Outgoing]] = [[]]
    room = max_shard_bytes
    for tensor in tensors:
        if shards[-1] and tensor.nbytes > room:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(tensor)
        room -= tensor.nbytes
    count = len(shards)
    names = [SINGLE] if count == 1 else [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    for name, shard in zip(names, shards, strict=True):
        _write_file(directory / name, shard)
    if count > 1:
        weight_map = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        size = sum(tensor.nbytes for tensor in tensors)
        write_json(directory / INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})
    fresh = {*names, INDEX} if count > 1 else {SINGLE}
    for old in [*directory.glob("model-*-of-*.safetensors"), directory / SINGLE, directory / INDEX]:
        if old.name not in fresh:
            old.unlink(missing_ok=True)


def _write_file(path: Path, tensors: list[Outgoing]) -> None:
    # The format: https://github.com/huggingface/safetensors#format. Header length (8 bytes, little endian), header
    # (JSON, padded to 8 bytes with spaces), then the data in the order of the header, without gaps.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        code, end = _CODES[jnp.dtype(tensor.dtype)], offset + tensor.nbytes
        header[tensor.name] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path, sync=True) as scratch, open(scratch, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            data = np.ascontiguousarray(tensor.make())
            if data.shape != tensor.shape or data.dtype != jnp.dtype(tensor.dtype):
                raise ValueError(f"{tensor.name} was announced as {tensor.dtype}{tensor.shape}")
            file.write(data.reshape(-1).view(np.uint8).data)
