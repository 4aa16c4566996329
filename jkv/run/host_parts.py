"""What each of several hosts writes of one run: a part, which is a directory of the same form (``host0.part``, ...)
inside the run's own. When every sample is there, host 0 folds the parts into the run's directory and removes them.

A run that was broken off leaves its parts there. The next one, on any number of hosts, folds them before it begins.
"""

import contextlib
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from jkv.errors import UserError
from jkv.files.run_files import CONFIG, KEY_FIELDS, SAMPLES, SUMMARY, TIMINGS, TRACE, json_object, whole_lines
from jkv.files.whole import SCRATCH
from jkv.run.directory import RunDirectory, read_config

Key = tuple[str, int]
"""(id, sample): which sample a line belongs to."""
# A key of timings.json while parts are being folded: the share of its figures that comes from the parts. A fold that is
# broken off and repeated subtracts it, so that no time counts twice.
_FOLDING = "folding"


def part(path: pathlib.Path, host: int) -> pathlib.Path:
    """The directory that a host writes, within the run's directory ``path``."""
    return path / f"host{host}.part"


def parts(path: pathlib.Path) -> list[pathlib.Path]:
    """The parts that are in a run's directory, by host."""
    found = {p: re.fullmatch(r"host([0-9]+)\.part", p.name) for p in path.glob("host*.part") if (p / SAMPLES).is_file()}
    numbered = [(int(match[1]), p) for p, match in found.items() if match]
    return [p for _, p in sorted(numbered)]


class Finished:
    """The finished samples in directories that other processes are writing.

    Attributes:
        keys: (id, sample) of all that were seen so far.
    """

    def __init__(self, *directories: pathlib.Path):
        self._read = {directory / SAMPLES: 0 for directory in directories}  # bytes of each file read so far
        self.keys: set[Key] = set()

    def refresh(self) -> set[Key]:
        """Read what the files have gained, and return ``keys``. A last line that is not whole yet is left for later.

        Raises:
            UserError: a line is not a sample.
        """
        for path, start in self._read.items():
            try:
                with open(path, "rb") as file:
                    file.seek(start)
                    data = file.read()
            except FileNotFoundError:
                continue
            lines, rest = whole_lines(data)
            for line in lines:
                self.keys.add(_key(line, path))
            self._read[path] = start + len(data) - len(rest)
        return self.keys


def _key(line: bytes, path: pathlib.Path) -> Key:
    """Whose line of samples.jsonl or trace.jsonl this is."""
    row = json_object(line, KEY_FIELDS)
    if row is None:
        mend = f"delete the line that begins with {line[:40].decode(errors='replace')!r}, or give a new --out"
        raise UserError("holds what is not a sample", where=str(path), mend=mend)
    return row["id"], row["sample"]


def fold(path: pathlib.Path, into: RunDirectory | None = None) -> str:
    """Move what the parts in ``path`` hold into the run's own directory, and remove them.

    To be called when nobody writes there. If it is broken off, calling it again completes it: nothing is lost or there
    twice. Hosts work side by side, so of their seconds the longest counts; a step is one of all rows, so of their steps
    the mean counts.

    Args:
        path: the run's directory.
        into: the same directory, if it is open already; it stays open.

    Returns:
        What was repaired, a line each; empty if nothing was.

    Raises:
        UserError: a part belongs to another config or is damaged.
        BeingWritten: a part is open in another process.
    """
    there = parts(path)
    if not there:
        return ""
    opened: list[RunDirectory] = []
    try:
        for directory in there:
            if (directory / CONFIG).exists():  # without one the host ended before its run began
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
    """Remove a part's files, and the directory if nothing else is in it."""
    if not (directory / CONFIG).exists() and (directory / SAMPLES).stat().st_size:
        return
    for name in (SAMPLES, TRACE, SUMMARY, TIMINGS, CONFIG):
        for file in (directory / name, directory / SCRATCH.format(name)):
            file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        directory.rmdir()


def _move(there: list[RunDirectory], run: RunDirectory) -> None:
    """Append the parts' samples, evictions and times to the run's."""
    taken: dict[Key, RunDirectory] = {}  # the part that each sample is taken from
    done, new = run.finished, []
    for directory in there:
        for row in directory.samples:
            key = row["id"], row["sample"]
            if key not in done and key not in taken:
                taken[key] = directory
                new.append(row)
    before = {name: value for name, value in run.timings.items() if name != _FOLDING}
    of_parts = {name: max(part.timings[name] for part in there) for name in before}
    of_parts["steps"] = sum(part.timings["steps"] for part in there) / len(there)
    counted: Any = run.timings.get(_FOLDING)  # by a fold that was broken off
    if counted is not None:
        before = {name: value - counted.get(name, 0.0) for name, value in before.items()}
    elif not new:  # an earlier fold had moved everything; only removing the parts is left
        return
    timings = {name: value + of_parts[name] for name, value in before.items()}
    run.adopt(new, _evictions(there, taken), {**timings, _FOLDING: of_parts})
    run.replace_timings(timings)


def _evictions(there: list[RunDirectory], taken: dict[Key, RunDirectory]) -> Iterator[bytes]:
    """Lines of the parts' traces, without newlines, of the samples that are taken from each."""
    for directory in there:
        path = directory.path / TRACE
        if path.exists():
            with open(path, "rb") as file:
                yield from (line.rstrip(b"\n") for line in file if taken.get(_key(line, path)) is directory)
