"""The output directory of a run: a line is appended as each sample finishes, the same run continues after a stop, and
another run is refused."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TextIO

from jkv.errors import UserError
from jkv.files.run_files import (
    CONFIG,
    KEY_FIELDS,
    SAMPLE_FIELDS,
    SAMPLES,
    SUMMARY,
    TIMINGS,
    TRACE,
    json_object,
    read_rows,
    whole_lines,
)
from jkv.files.whole import write_bytes
from jkv.terminal.termination import whole_write

_TIMES = ("wall", "compile", "decode", "steps")
# What the error says where a field's old and new value, two hash digests, would tell a reader nothing.
_CHANGED = {
    "problems": "the task's prompts or answers have changed",
    "weights": "the model's weights have changed",
    "code": "the policy's code has changed",
}


class BeingWritten(UserError):
    """Another process has the directory open."""


class RunDirectory:
    """The open files of one run.

    Attributes:
        path: the directory.
        config: the run's identity (`jkv.run.identity`), which must be the same to continue.
        samples: rows of the finished samples, those of earlier sessions included.
        timings: seconds (``wall``, ``compile``, ``decode``) and decode steps (``steps``), summed over all sessions.
        notice: what was repaired on opening, a line each; empty if nothing was.
        sync: whether each line reaches the disk before the next is written.
    """

    def __init__(self, path: pathlib.Path, config: dict[str, Any], *, trace: bool = False, sync: bool = False):
        """Open a directory, new or to be continued.

        Args:
            path: the directory; made if it isn't there.
            config: the run's identity; JSON values.
            trace: whether trace.jsonl is written.
            sync: call fsync after each line. Needed where other machines read the directory while it is written.

        Raises:
            UserError: the directory belongs to another config, holds damaged lines, or can't be written.
            BeingWritten: another process has it open.
        """
        self.path, self.notice, self.sync = path, "", sync
        # Through JSON and back, so that a tuple equals the list that it becomes in config.json.
        self.config: dict[str, Any] = json.loads(json.dumps(config))
        self._samples_file: TextIO | None = None
        self._trace_file: TextIO | None = None
        try:
            with self._explained(path):
                path.mkdir(parents=True, exist_ok=True)
                self._refuse_foreign_files()
                # Open for the whole run; `close` closes them.
                self._samples_file = open(path / SAMPLES, "a", encoding="utf-8")  # noqa: SIM115
                self._lock()
                self.samples = self._read_samples()
                self._check_or_write_config()
                self.timings = self._read_timings()
                self._drop_unfinished_trace()
                if trace:
                    self._trace_file = open(path / TRACE, "a", encoding="utf-8")  # noqa: SIM115
        except BaseException:
            self.close()
            raise

    @property
    def finished(self) -> set[tuple[str, int]]:
        """(id, sample) of the samples that need not run again."""
        return {(row["id"], row["sample"]) for row in self.samples}

    def add_sample(self, row: dict[str, Any], timings: dict[str, float]) -> None:
        """Append a finished sample. When this returns the operating system has it: killing the process loses nothing.

        Args:
            row: a line of samples.jsonl.
            timings: of all sessions up to this sample. They are written first, so that no sample is without its time.

        Raises:
            UserError: a file can't be written.
        """
        with whole_write():
            self._write_json(TIMINGS, timings)
            self._append(self._samples_file, SAMPLES, json.dumps(row, ensure_ascii=False))
            self.samples.append(row)
            self.timings = timings

    def add_trace(self, row: dict[str, Any]) -> None:
        """Append one eviction to trace.jsonl. Raises UserError if the file can't be written."""
        with whole_write():
            self._append(self._trace_file, TRACE, json.dumps(row))

    def adopt(self, rows: Sequence[dict[str, Any]], trace: Iterable[bytes], timings: dict[str, Any]) -> None:
        """Append samples that other hosts have finished.

        Args:
            rows: lines of samples.jsonl.
            trace: the lines of trace.jsonl that belong to them, without newlines.
            timings: replaces those of the samples so far; written first.

        Raises:
            UserError: a file can't be written.
        """
        with whole_write():
            self._write_json(TIMINGS, timings)
            for line in trace:
                self._append(self._trace_file, TRACE, line.decode())
            if rows:
                self._append(
                    self._samples_file, SAMPLES, "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
                )
            self.samples += rows
            self.timings = timings

    def replace_timings(self, timings: dict[str, float]) -> None:
        """Replace the timings of all samples so far. Raises UserError if the file can't be written."""
        self._write_json(TIMINGS, timings)
        self.timings = timings

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json whole or not at all. Raises UserError if it can't be written."""
        self._write_json(SUMMARY, summary)

    def close(self) -> None:
        """Close the files. An error of the last flush is ignored: the write before it has raised the same one."""
        for file in (self._samples_file, self._trace_file):
            if file is not None:
                with contextlib.suppress(OSError):
                    file.close()

    def _refuse_foreign_files(self) -> None:
        """Leave alone a directory that holds something else, such as a model with its own config.json."""
        mend = "give a new --out"
        if (self.path / "runs").is_dir() and (self.path / "results.csv").exists():
            raise UserError("holds a sweep", where=str(self.path), mend=mend)
        if (self.path / CONFIG).exists():
            missing = sorted(self.config.keys() - read_config(self.path).keys())
            if missing:
                what = f"holds a {CONFIG} that no run of this version wrote (it has no {missing[0]!r})"
                raise UserError(what, where=str(self.path), mend=mend)
        elif any(f.exists() and f.stat().st_size for f in (self.path / x for x in (SAMPLES, TRACE, SUMMARY, TIMINGS))):
            raise UserError(f"has results but no {CONFIG}", where=str(self.path), mend=mend)

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # this platform has no such locks
            return
        assert self._samples_file is not None
        try:
            fcntl.flock(self._samples_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            mend = "wait until it is done, or give a new --out"
            raise BeingWritten("another run is writing there", where=str(self.path), mend=mend) from None
        except OSError:  # a file system without locks
            return

    def _check_or_write_config(self) -> None:
        before = read_config(self.path) if (self.path / CONFIG).exists() else self.config
        if self.samples:
            refuse_other_config(self.path, before, self.config)
        else:  # without a finished sample nothing would be lost, so any config may take the directory over
            self._write_json(CONFIG, self.config)
            for name in (TRACE, SUMMARY, TIMINGS):
                (self.path / name).unlink(missing_ok=True)

    def _read_samples(self) -> list[dict[str, Any]]:
        path = self.path / SAMPLES
        rows: list[dict[str, Any]] = []
        seen: set[tuple[str, int]] = set()
        for number, line in self._repaired_lines(path):
            row, mend = json_object(line, SAMPLE_FIELDS), "delete that line, or give a new --out"
            if row is None:
                raise UserError("is not a sample", where=f"{path}:{number}", mend=mend)
            key = row["id"], row["sample"]
            if key in seen:
                raise UserError(f"sample {key[1]} of {key[0]!r} is there twice", where=f"{path}:{number}", mend=mend)
            seen.add(key)
            rows.append(row)
        return rows

    def _repaired_lines(self, path: pathlib.Path) -> Iterator[tuple[int, bytes]]:
        """A file's lines with their numbers, from 1. A last line without its newline was torn by a kill or a full disk:
        it is cut off."""
        if not path.exists():
            return
        data = path.read_bytes()
        lines, rest = whole_lines(data)
        if rest:
            os.truncate(path, len(data) - len(rest))
            notice = f"{path}: cut off a torn last line of {len(rest)} bytes"
            self.notice += f"\n{notice}" if self.notice else notice
        yield from enumerate(lines, 1)

    def _drop_unfinished_trace(self) -> None:
        """Remove the evictions of samples that were cut off. They run again from their start and would be listed
        twice."""
        path = self.path / TRACE
        if not path.exists():
            return
        finished, kept, dropped = self.finished, [], False
        for number, line in self._repaired_lines(path):
            row = json_object(line, KEY_FIELDS)
            if row is None:
                raise UserError("is not an eviction", where=f"{path}:{number}", mend="give a new --out")
            if (row["id"], row["sample"]) in finished:
                kept.append(line + b"\n")
            else:
                dropped = True
        if dropped:
            self._write_bytes(TRACE, b"".join(kept))

    def _read_timings(self) -> dict[str, float]:
        if not self.samples:
            return dict.fromkeys(_TIMES, 0.0)
        timings = _read_json(self.path / TIMINGS) if (self.path / TIMINGS).exists() else {}
        if any(type(timings.get(name)) not in (int, float) for name in _TIMES):
            raise UserError("is missing or damaged", where=str(self.path / TIMINGS), mend="give a new --out")
        return timings

    def _append(self, file: TextIO | None, name: str, line: str) -> None:
        assert file is not None
        with self._explained(self.path / name):
            file.write(line + "\n")
            file.flush()
            if self.sync:
                os.fsync(file.fileno())

    def _write_json(self, name: str, value: dict[str, Any]) -> None:
        self._write_bytes(name, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())

    def _write_bytes(self, name: str, data: bytes) -> None:
        with self._explained(self.path / name):
            write_bytes(self.path / name, data)

    @contextlib.contextmanager
    def _explained(self, path: pathlib.Path) -> Iterator[None]:
        """Turn the operating system's errors, a full disk's for example, into UserErrors."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{error.strerror or error}",
                where=str(error.filename or path),
                mend="mend that and run the same command again: finished samples are kept",
            ) from None


def refuse_other_settings(path: pathlib.Path, settings: dict[str, Any]) -> None:
    """Refuse to continue a run under settings that differ from those its samples were drawn with.

    Args:
        path: the run's directory. Without finished samples there is nothing to refuse.
        settings: a part of the run's identity. Only keys that the directory's config has, too, are compared.

    Raises:
        UserError: a setting differs, or the directory's config can't be read.
    """
    if not ((path / CONFIG).exists() and (path / SAMPLES).exists() and (path / SAMPLES).stat().st_size):
        return
    before, now = read_config(path), json.loads(json.dumps(settings))
    both = before.keys() & now.keys()
    refuse_other_config(path, {name: before[name] for name in both}, {name: now[name] for name in both})


def refuse_run(path: pathlib.Path) -> None:
    """Raise UserError if ``path``, which is to take a sweep, holds a single run."""
    if (path / SAMPLES).exists():
        raise UserError(f"holds a run ({SAMPLES})", where=str(path), mend="give a new --out")


def refuse_other_config(path: pathlib.Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise UserError, naming the first difference, unless two configs are the same.

    Args:
        path: the run's directory, for the message.
        before: the config that its samples were drawn with, as read from JSON.
        now: the config to continue with, as JSON would give it back.
    """
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if changed:
        key = changed[0]
        what = _CHANGED.get(key, f"{key} {before.get(key)!r}, now {now.get(key)!r}")
        mend = "give a new --out, or the flags it was made with"
        raise UserError(f"was made with another config ({what})", where=str(path), mend=mend)


def read_samples(path: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of samples.jsonl in ``path``, a run's directory that is closed, in the order of finishing."""
    return read_rows(path / SAMPLES)


def read_config(path: pathlib.Path) -> dict[str, Any]:
    """The config of the run in directory ``path``. Raises UserError if it is damaged, OSError if it isn't there."""
    return _read_json(path / CONFIG)


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    value = json_object(path.read_bytes())
    if value is None:
        raise UserError("is damaged", where=str(path), mend="give a new --out")
    return value
