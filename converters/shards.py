"""The safetensors files of a Hugging Face checkpoint: what they hold, and writing them one tensor at a time."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from safetensors import SafetensorError, safe_open

from converters.files import read_json, write_json
from converters.ranges import read_box
from jkv.errors import UserError
from jkv.files.whole import replacing

# A checkpoint is one file, or several with an index.
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# The dtypes that weights may have, by their codes in a file's header.
DTYPES = {"F32": jnp.dtype("float32"), "F16": jnp.dtype("float16"), "BF16": jnp.dtype("bfloat16")}
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_NUMPY = {**DTYPES, "F64": np.dtype("float64")}
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor in a file, whose data hasn't been read.

    Attributes:
        file: the file.
        name: the tensor's.
        code: its dtype, as in the file's header: F32, BF16, ...
        shape: its shape.
        descriptor: of the open file.
        offset: bytes of the file before the data.
    """

    file: Path
    name: str
    code: str
    shape: tuple[int, ...]
    descriptor: int
    offset: int

    def read(self, box: Sequence[slice] | None = None) -> np.ndarray:
        """The data in the file's dtype.

        Args:
            box: a slice with start and stop for each axis, to read a part of it.

        Raises:
            UserError: the file can't be read.
        """
        with _readable(self.file):
            return read_box(self.descriptor, self.offset, self.shape, _NUMPY[self.code], box)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns the errors of reading a file into a UserError."""
    try:
        yield
    except FileNotFoundError:
        raise UserError("no such file", where=str(path), mend="download the checkpoint again") from None
    except OSError as error:
        raise UserError(f"can't be read ({error.strerror or error})", where=str(path)) from None
    except SafetensorError as error:
        mend = "the file is incomplete or not safetensors: download it again"
        raise UserError(f"can't be read as safetensors ({error})", where=str(path), mend=mend) from None


@contextlib.contextmanager
def opened(directory: Path) -> Iterator[dict[str, Stored]]:
    """The tensors of a checkpoint, by name. Its files are open within the block.

    Raises:
        UserError: there are no safetensors files, one is damaged or missing, or the index doesn't fit the files.
    """
    with contextlib.ExitStack() as stack:
        if (directory / SINGLE).exists():
            yield _tensors(directory / SINGLE, stack)
        elif (directory / INDEX).exists():
            yield _indexed(directory, stack)
        else:
            raise _no_weights(directory)


def _tensors(path: Path, stack: contextlib.ExitStack) -> dict[str, Stored]:
    """The tensors of one file, which is open until the stack is closed."""
    with _readable(path):
        with safe_open(path, framework="np") as checked:  # checks the header
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
    """The tensors of the files that an index names."""
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
                problems.append(f"{name} is in {file}, the index says {weight_map.get(name, 'nothing')}")
    problems += [f"{name} isn't in {file}" for name, file in weight_map.items() if name not in found]
    if problems:
        raise UserError(f"index and files disagree: {elided(problems)}", where=where)
    return found


def _no_weights(directory: Path) -> UserError:
    """The error for a directory without safetensors."""
    pickles = sorted(path.name for path in directory.glob("*") if path.suffix in _PICKLES)
    if pickles:
        mend = "only safetensors are read, never pickles: save the model again with safe_serialization=True"
        return UserError(f"the weights are pickles ({elided(pickles)})", where=str(directory), mend=mend)
    return UserError(f"no weights: neither {SINGLE} nor {INDEX} is there", where=str(directory))


def elided(items: list[str], keep: int = 10) -> str:
    """'a, b, c'; of more than ``keep`` items the first, and how many there are."""
    more = f", ... ({len(items)} in all)" if len(items) > keep else ""
    return ", ".join(items[:keep]) + more


@dataclasses.dataclass(frozen=True)
class Outgoing:
    """A tensor to be written.

    Attributes:
        name: the tensor's.
        dtype: its dtype in the file.
        shape: its shape.
        make: returns its data. It is called when the tensor is written, so that only one is in memory at a time.
    """

    name: str
    dtype: DTypeLike
    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return int(np.prod(self.shape, dtype=np.int64)) * jnp.dtype(self.dtype).itemsize


def write(directory: Path, tensors: list[Outgoing], max_shard_bytes: int) -> None:
    """Write a checkpoint: model.safetensors, or several files and an index.

    Each file appears complete or not at all. Weights of an earlier model in the directory are removed when all of them
    are there.

    Args:
        directory: where to.
        tensors: in the order in which they are written.
        max_shard_bytes: bytes of data in a file at most, unless it holds a single tensor that is larger.
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
    """Write one safetensors file (https://github.com/huggingface/safetensors#format).

    It consists of the header's length (8 bytes, little endian), the header (JSON, padded with spaces to a multiple of
    8 bytes), and the data in the order of the header, without gaps.
    """
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
                raise ValueError(f"{tensor.name} is {data.dtype}{data.shape}, expected {tensor.dtype}{tensor.shape}")
            file.write(data.reshape(-1).view(np.uint8).data)
