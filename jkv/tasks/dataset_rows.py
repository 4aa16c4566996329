"""Rows of a benchmark's data set, by the ``datasets`` library: from the hub, or from files in the same columns."""

import glob
import os
import pathlib
import tempfile
from typing import Any

from jkv.errors import UserError
from jkv.tasks.spec import Benchmark

_BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
VARIABLE = "JKV_DATA"


def read(name: str, source: Benchmark, file: pathlib.Path) -> tuple[list[dict[str, Any]], str]:
    """All rows, and what to call their place in messages. ``file``: the benchmark's YAML file.

    Raises UserError if they can't be had.
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
        raise UserError("no such directory", where=f"{VARIABLE}={folder}", mend="name one, or unset the variable")
    places = [pathlib.Path(folder) / (name + suffix) for suffix in (*_BUILDERS, "")]
    return next((place for place in places if place.exists()), None)


def _read_files(path: pathlib.Path) -> list[dict[str, Any]]:
    kinds = ", ".join(_BUILDERS)
    files = sorted(p for p in path.rglob("*") if p.suffix in _BUILDERS) if path.is_dir() else [path]
    if len({p.suffix for p in files}) != 1 or files[0].suffix not in _BUILDERS:
        raise UserError(f"is no file or directory of one of {kinds}", where=str(path), mend="convert it to one of them")
    datasets = _datasets()
    # A cache of its own, gone afterwards: nothing is read that an earlier file of this name left behind.
    with tempfile.TemporaryDirectory() as cache:
        try:
            found = datasets.load_dataset(
                _BUILDERS[files[0].suffix],
                data_files=[glob.escape(str(p.absolute())) for p in files],
                split="train",
                cache_dir=cache,
            )
            return [dict(row) for row in found]
        except Exception as error:  # pyarrow, pandas and datasets each have their own
            cause = error.__cause__ or error
            raise UserError(f"can't be read ({_reason(cause)})", where=str(path), mend="save it again") from None


def _fetch(name: str, source: Benchmark) -> list[dict[str, Any]]:
    datasets = _datasets()
    try:
        found = datasets.load_dataset(source.hub, source.subset, split=source.split, revision=source.revision)
        return [dict(row) for row in found]
    except Exception as error:  # offline, absent, gated, another layout: as many exception types as causes
        what = f"{name} can't be had from the hub: {source.hub} ({_reason(error)})"
        terms = f"accept its terms at https://huggingface.co/datasets/{source.hub} and log in with hf auth login"
        here = f"put {name}.jsonl (or .csv, .parquet) into a directory and set {VARIABLE} to that"
        mend = f"{terms if source.gated else 'check the network'}, or {here}"
        raise UserError(what, where="--task", mend=mend) from None


def _datasets() -> Any:
    import datasets

    datasets.disable_progress_bars()
    return datasets


def _reason(error: BaseException) -> str:
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first[:300]}"
