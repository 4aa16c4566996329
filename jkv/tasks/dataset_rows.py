"""The rows of a benchmark's data set, read with the ``datasets`` library from the Hugging Face Hub or from files."""

import glob
import os
import pathlib
import tempfile
import types
from typing import Any

from jkv.errors import UserError
from jkv.tasks.spec import Benchmark

_BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
VARIABLE = "JKV_DATA"


def read(name: str, source: Benchmark, file: pathlib.Path) -> tuple[list[dict[str, Any]], str]:
    """Read all rows: from the file that the YAML names, else from JKV_DATA, else from the Hub.

    Args:
        name: of the benchmark; the name of its file or folder in JKV_DATA.
        source: the benchmark's YAML file, parsed.
        file: the path of that YAML file; ``source.data`` is relative to its folder.

    Returns:
        The rows, and where they come from (a path, or the data set's name on the Hub) for error messages.

    Raises:
        UserError: the file, the folder or the data set is missing or can't be read.
    """
    if source.data is not None:
        path = file.parent / source.data
        if not path.exists():
            raise UserError("no such file", where=str(path), mend=f"{file} names it as data")
        return _read_files(path), str(path)
    local = _local(name)
    if local is not None:
        return _read_files(local), str(local)
    assert source.hub is not None
    return _fetch(name, source), source.hub


def _local(name: str) -> pathlib.Path | None:
    """The benchmark's file or directory in the folder that JKV_DATA names, if there is one."""
    folder = os.environ.get(VARIABLE)
    if not folder:
        return None
    if not pathlib.Path(folder).is_dir():
        mend = "name an existing directory, or unset the variable"
        raise UserError("no such directory", where=f"{VARIABLE}={folder}", mend=mend)
    places = [pathlib.Path(folder) / (name + suffix) for suffix in (*_BUILDERS, "")]
    return next((place for place in places if place.exists()), None)


def _read_files(path: pathlib.Path) -> list[dict[str, Any]]:
    kinds = ", ".join(_BUILDERS)
    files = sorted(p for p in path.rglob("*") if p.suffix in _BUILDERS) if path.is_dir() else [path]
    if len({p.suffix for p in files}) != 1 or files[0].suffix not in _BUILDERS:
        what = f"is not a file or a directory of files of one of the kinds {kinds}"
        raise UserError(what, where=str(path), mend="convert it to one of them")
    datasets = _datasets()
    # A temporary cache, so that datasets can't return what it cached for an earlier file of the same name.
    with tempfile.TemporaryDirectory() as cache:
        try:
            found = datasets.load_dataset(
                _BUILDERS[files[0].suffix],
                data_files=[glob.escape(str(p.absolute())) for p in files],
                split="train",
                cache_dir=cache,
            )
            return [dict(row) for row in found]
        except Exception as error:  # pyarrow, pandas and datasets each raise exceptions of their own
            cause = error.__cause__ or error
            raise UserError(f"can't be read ({_reason(cause)})", where=str(path), mend="save it again") from None


def _fetch(name: str, source: Benchmark) -> list[dict[str, Any]]:
    datasets = _datasets()
    try:
        found = datasets.load_dataset(source.hub, source.subset, split=source.split, revision=source.revision)
        return [dict(row) for row in found]
    except Exception as error:  # offline, absent, gated, changed layout: each raises another type
        what = f"{name} can't be loaded from the hub: {source.hub} ({_reason(error)})"
        terms = f"accept its terms at https://huggingface.co/datasets/{source.hub} and log in with hf auth login"
        local = f"put {name}.jsonl (or .csv, .parquet) into a directory and set {VARIABLE} to its path"
        mend = f"{terms if source.gated else 'check the network'}, or {local}"
        raise UserError(what, where="--task", mend=mend) from None


def _datasets() -> types.ModuleType:
    import datasets

    datasets.disable_progress_bars()
    return datasets


def _reason(error: BaseException) -> str:
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first[:300]}"
