"""What several hosts write of one run: a directory each inside the run's own (``host0.part`` ...), which is a run's
directory in small. When every sample is there, host 0 folds them into the run's own and removes them.

A run that was broken off leaves them: the next one, on any number of hosts, folds them before it begins.
"""

import contextlib
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from jkv.errors import UserError
from jkv.files.whole import SCRATCH
from jkv.run.directory import CONFIG, SAMPLES, SUMMARY, TIMINGS, TRACE, RunDirectory, read_config

Key = tuple[str, int]
# In timings.json while parts are being folded: what of its figures is theirs.
_FOLDING = "folding"


def part(path: pathlib.Path, host: int) -> pathlib.Path:
    """Where a host writes, within the run's directory."""
    return path / f"host{host}.part"


def parts(path: pathlib.Path) -> list[pathlib.Path]:
    """The parts that are there."""
    found = {p: re.fullmatch(r"host([0-9]+)\.part", p.name) for p in path.glob("host*.part") if (p / SAMPLES).is_file()}
    numbered = [(int(match[1]), p) for p, match in found.items() if match]
    return [p for _, p in sorted(numbered)]


class Finished:
    """(id, sample) of the finished samples in directories that others are writing. Reads only what is new.

    keys: of all so far. A last line that is not whole yet is left for the next time.
    """

    def __init__(self, *directories: pathlib.Path):
        self._read = {directory / SAMPLES: 0 for directory in directories}
        self.keys: set[Key] = set()

    def refresh(self) -> set[Key]:
        """``keys``, after a look at the files."""
        for path, start in self._read.items():
            try:
                with open(path, "rb") as file:
                    file.seek(start)
                    data = file.read()
            except FileNotFoundError:
                continue
            whole = data[: data.rfind(b"\n") + 1]
            for line in whole.split(b"\n")[:-1]:
                self.keys.add(_key(line, path))
            self._read[path] = start + len(whole)
        return self.keys


def _key(line: bytes, path: pathlib.Path) -> Key:
    try:
        row = json.loads(line.decode("utf-8"))
        if type(row["id"]) is str and type(row["sample"]) is int:
            return row["id"], row["sample"]
    except (ValueError, RecursionError, KeyError, TypeError):
        pass
    mend = f"delete the line that begins with {line[:40].decode(errors='replace')!r}, or give a new --out"
    raise UserError("holds what is not a sample", where=str(path), mend=mend)


def fold(path: pathlib.Path, into: RunDirectory | None = None) -> str:
    """Move what the parts in ``path`` hold into the run's own directory (``into``, if it is open), and remove them.

    To be called when nobody writes there. Where it is broken off, calling it again ends it: nothing is lost or there
    twice. Time: hosts work side by side, so the longest of theirs counts; steps are of all rows, so their mean. Returns
    what was repaired. Raises UserError if a part is of another config, damaged, or being written.
    """
    there = parts(path)
    if not there:
        return ""
    opened: list[RunDirectory] = []
    try:
        for directory in there:
            if (directory / CONFIG).exists():  # else it ended before it began
                config = into.config if into is not None else read_config(directory)
                opened.append(RunDirectory(directory, config))
        notices = [p.notice for p in opened if p.notice]
        if any(p.samples for p in opened):
            config = next(p.config for p in opened if p.samples)
            run = into or RunDirectory(path, config, trace=bool(config.get("trace")))
            try:
                _move(opened, run)
            finally:
                if into is None:
                    notices += [run.notice] if run.notice else []
                    run.close()
    finally:
        for directory in opened:
            directory.close()
    for directory in there:
        _remove(directory)
    return "\n".join(notices)


def _remove(directory: pathlib.Path) -> None:
    """A part's files, and the directory if nothing else is in it."""
    if not (directory / CONFIG).exists() and (directory / SAMPLES).stat().st_size:
        return
    for name in (SAMPLES, TRACE, SUMMARY, TIMINGS, CONFIG):
        for file in (directory / name, directory / SCRATCH.format(name)):
            file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        directory.rmdir()


def _move(there: list[RunDirectory], run: RunDirectory) -> None:
    taken: dict[Key, RunDirectory] = {}
    done, new = run.finished, []
    for directory in there:
        for row in directory.samples:
            key = row["id"], row["sample"]
            if key not in done and key not in taken:
                taken[key] = directory
                new.append(row)
    before = {name: value for name, value in run.timings.items() if name != _FOLDING}
    mine = {name: max(part.timings[name] for part in there) for name in before}
    mine["steps"] = sum(part.timings["steps"] for part in there) / len(there)
    half_done: Any = run.timings.get(_FOLDING)
    if half_done is not None:
        before = {name: value - half_done.get(name, 0.0) for name, value in before.items()}
    elif not new:  # all of it had been moved, and only removing the parts was left
        return
    timings = {name: value + mine[name] for name, value in before.items()}
    run.adopt(new, _evictions(there, taken), {**timings, _FOLDING: mine})
    run.settle(timings)


def _evictions(there: list[RunDirectory], taken: dict[Key, RunDirectory]) -> Iterator[bytes]:
    """Lines of the parts' traces, of samples that are taken from there."""
    for directory in there:
        path = directory.path / TRACE
        if path.exists():
            with open(path, "rb") as file:
                yield from (line.rstrip(b"\n") for line in file if taken.get(_key(line, path)) is directory)
