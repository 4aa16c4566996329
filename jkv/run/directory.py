"""The output directory of a run: appended sample by sample, continued after a stop, refused to another run."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TextIO

from jkv.errors import UserError
from jkv.files.whole import write_bytes
from jkv.terminal.termination import whole_write

SAMPLES, TRACE, SUMMARY, CONFIG, TIMINGS = (
    "samples.jsonl", "trace.jsonl", "summary.json", "config.json", "timings.json",
)  # fmt: skip
_NUMBER, _INTEGER = (int, float), (int,)
_FIELDS: dict[str, tuple[type, ...]] = {
    "id": (str,), "sample": _INTEGER, "prompt_tokens": _INTEGER, "token_ids": (list,), "text": (str,),
    "finish": (str,), "answer": (str, type(None)), "correct": (bool, type(None)), "evictions": _INTEGER,
    "peak_slots": _INTEGER, "mean_slots": _NUMBER,
}  # fmt: skip
_TIMES = ("wall", "compile", "decode", "steps")
_CHANGED = {
    "problems": "the task's prompts or answers have changed",
    "weights": "the model's weights have changed",
    "code": "the policy's code has changed",
}


class BeingWritten(UserError):
    """Another process has the directory open."""


class RunDirectory:
    """Files of one run in ``path``. ``samples`` are the finished ones, those of earlier sessions included.

    config: what must be the same to continue; JSON.  trace: whether trace.jsonl is written.  sync: whether each
    sample is on the disk, or the server, before the next: for directories that other machines read.
    ``timings`` are seconds and steps summed over sessions. Raises UserError if the directory belongs to another config
    or to a run that is still at work, holds damaged lines, or can't be written. ``notice`` says what was repaired.
    """

    def __init__(self, path: pathlib.Path, config: dict[str, Any], *, trace: bool = False, sync: bool = False):
        self.path, self.notice, self.sync = path, "", sync
        # What JSON makes of it, so that tuples and lists compare equal.
        self.config: dict[str, Any] = json.loads(json.dumps(config))
        self._samples_file: TextIO | None = None
        self._trace_file: TextIO | None = None
        try:
            with self._explained(path):
                path.mkdir(parents=True, exist_ok=True)
                self._refuse_foreign_files()
                self._samples_file = open(path / SAMPLES, "a", encoding="utf-8")  # noqa: SIM115 (open for the whole run)
                self._lock()
                self.samples = self._read_samples()
                self._claim()
                self.timings = self._read_timings()
                self._drop_unfinished_trace()
                if trace:
                    self._trace_file = open(path / TRACE, "a", encoding="utf-8")  # noqa: SIM115
        except BaseException:
            self.close()
            raise

    @property
    def finished(self) -> set[tuple[str, int]]:
        """(id, sample) of what need not run again."""
        return {(row["id"], row["sample"]) for row in self.samples}

    def add_sample(self, row: dict[str, Any], timings: dict[str, float]) -> None:
        """Append a finished sample. When this returns the operating system has it: killing the process loses nothing.

        timings: of all sessions so far. They are written first, so that no sample is ever without its time.
        """
        with whole_write():
            self._write(TIMINGS, timings)
            self._append(self._samples_file, SAMPLES, json.dumps(row, ensure_ascii=False))
            self.samples.append(row)
            self.timings = timings

    def add_trace(self, row: dict[str, Any]) -> None:
        """Append one eviction."""
        with whole_write():
            self._append(self._trace_file, TRACE, json.dumps(row))

    def adopt(self, rows: Sequence[dict[str, Any]], trace: Iterable[bytes], timings: dict[str, Any]) -> None:
        """Append samples that were finished elsewhere and their evictions, lines of a trace.jsonl."""
        with whole_write():
            self._write(TIMINGS, timings)
            for line in trace:
                self._append(self._trace_file, TRACE, line.decode())
            if rows:
                self._append(
                    self._samples_file, SAMPLES, "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
                )
            self.samples += rows
            self.timings = timings

    def settle(self, timings: dict[str, float]) -> None:
        """Replace the timings of all samples so far."""
        self._write(TIMINGS, timings)
        self.timings = timings

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json whole or not at all."""
        self._write(SUMMARY, summary)

    def close(self) -> None:
        """Close the files. A buffer that could not be flushed has been reported already."""
        for file in (self._samples_file, self._trace_file):
            if file is not None:
                with contextlib.suppress(OSError):
                    file.close()

    def _refuse_foreign_files(self) -> None:
        """A directory with a config.json of something else, a model's say, is left alone."""
        mend = "give a new --out"
        if (self.path / "runs").is_dir() and (self.path / "results.csv").exists():
            raise UserError("holds a sweep", where=str(self.path), mend=mend)
        if (self.path / CONFIG).exists():
            missing = sorted(self.config.keys() - self._read_json(CONFIG).keys())
            if missing:
                what = f"holds a {CONFIG} that no run of this version wrote (it has no {missing[0]!r})"
                raise UserError(what, where=str(self.path), mend=mend)
        elif any(f.exists() and f.stat().st_size for f in (self.path / x for x in (SAMPLES, TRACE, SUMMARY, TIMINGS))):
            raise UserError(f"has results but no {CONFIG}", where=str(self.path), mend=mend)

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # not on this platform
            return
        assert self._samples_file is not None
        try:
            fcntl.flock(self._samples_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            mend = "wait until it is done, or give a new --out"
            raise BeingWritten("another run is writing there", where=str(self.path), mend=mend) from None
        except OSError:  # a file system without locks
            return

    def _claim(self) -> None:
        before = self._read_json(CONFIG) if (self.path / CONFIG).exists() else self.config
        if self.samples:
            refuse_other_config(self.path, before, self.config)
        else:  # nothing is lost: a run that failed before its first sample doesn't hold the directory
            self._write(CONFIG, self.config)
            for name in (TRACE, SUMMARY, TIMINGS):
                (self.path / name).unlink(missing_ok=True)

    def _read_samples(self) -> list[dict[str, Any]]:
        path = self.path / SAMPLES
        rows: list[dict[str, Any]] = []
        seen: set[tuple[str, int]] = set()
        for number, line in self._whole_lines(path):
            row, mend = _object(line), "delete that line, or give a new --out"
            if row is None or not all(type(row.get(k, ...)) in kinds for k, kinds in _FIELDS.items()):
                raise UserError("is not a sample", where=f"{path}:{number}", mend=mend)
            key = row["id"], row["sample"]
            if key in seen:
                raise UserError(f"sample {key[1]} of {key[0]!r} is there twice", where=f"{path}:{number}", mend=mend)
            seen.add(key)
            rows.append(row)
        return rows

    def _whole_lines(self, path: pathlib.Path) -> Iterator[tuple[int, bytes]]:
        """Numbered lines. A last line without its newline was torn by a kill or a full disk: it is cut off."""
        if not path.exists():
            return
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(path, whole)
            notice = f"{path}: cut off a torn last line of {len(data) - whole} bytes"
            self.notice += f"\n{notice}" if self.notice else notice
        yield from enumerate(data[:whole].split(b"\n")[:-1], 1)

    def _drop_unfinished_trace(self) -> None:
        """A sample that was cut off runs again from its start, so its evictions must not be listed twice."""
        path = self.path / TRACE
        if not path.exists():
            return
        finished, kept, dropped = self.finished, [], False
        for number, line in self._whole_lines(path):
            row = _object(line)
            if row is None or type(row.get("id")) is not str or type(row.get("sample")) is not int:
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
        timings = self._read_json(TIMINGS) if (self.path / TIMINGS).exists() else {}
        if any(type(timings.get(name)) not in _NUMBER for name in _TIMES):
            raise UserError("is missing or damaged", where=str(self.path / TIMINGS), mend="give a new --out")
        return timings

    def _read_json(self, name: str) -> dict[str, Any]:
        return _read_json(self.path / name)

    def _append(self, file: TextIO | None, name: str, line: str) -> None:
        assert file is not None
        with self._explained(self.path / name):
            file.write(line + "\n")
            file.flush()
            if self.sync:
                os.fsync(file.fileno())

    def _write(self, name: str, value: dict[str, Any]) -> None:
        self._write_bytes(name, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())

    def _write_bytes(self, name: str, data: bytes) -> None:
        with self._explained(self.path / name):
            write_bytes(self.path / name, data)

    @contextlib.contextmanager
    def _explained(self, path: pathlib.Path):
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{error.strerror or error}",
                where=str(error.filename or path),
                mend="mend that and run the same command again: finished samples are kept",
            ) from None


def refuse_other_settings(path: pathlib.Path, settings: dict[str, Any]) -> None:
    """Raise UserError if the run in ``path`` has samples that were drawn with other settings than these, as far as both
    say them."""
    if not ((path / CONFIG).exists() and (path / SAMPLES).exists() and (path / SAMPLES).stat().st_size):
        return
    before, now = read_config(path), json.loads(json.dumps(settings))
    both = before.keys() & now.keys()
    refuse_other_config(path, {name: before[name] for name in both}, {name: now[name] for name in both})


def refuse_run(path: pathlib.Path) -> None:
    """Raise UserError if ``path`` holds a single run, and is no place for a sweep."""
    if (path / SAMPLES).exists():
        raise UserError(f"holds a run ({SAMPLES})", where=str(path), mend="give a new --out")


def refuse_other_config(path: pathlib.Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise UserError if the samples in ``path``, of config ``before``, can't be gone on with under ``now``."""
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if changed:
        key = changed[0]
        what = _CHANGED.get(key, f"{key} {before.get(key)!r}, now {now.get(key)!r}")
        mend = "give a new --out, or the flags it was made with"
        raise UserError(f"was made with another config ({what})", where=str(path), mend=mend)


def read_config(path: pathlib.Path) -> dict[str, Any]:
    """The config of the run in ``path``. Raises UserError if it can't be read."""
    return _read_json(path / CONFIG)


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    value = _object(path.read_bytes())
    if value is None:
        raise UserError("is damaged", where=str(path), mend="give a new --out")
    return value


def _object(line: bytes) -> dict[str, Any] | None:
    """The JSON object in ``line``, None if it holds none."""
    try:
        value = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):  # not UTF-8 and not JSON are ValueErrors
        return None
    return value if isinstance(value, dict) else None
