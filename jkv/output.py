"""The output directory of a run: appended sample by sample, continued after a stop, refused to another run."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any, TextIO

from jkv.errors import UserError

SAMPLES, TRACE, SUMMARY, CONFIG, TIMINGS = (
    "samples.jsonl", "trace.jsonl", "summary.json", "config.json", "timings.json",
)  # fmt: skip
_FIELDS = ("id", "sample", "prompt_tokens", "token_ids", "text", "finish", "evictions", "peak_slots", "mean_slots")


class RunDirectory:
    """Files of one run in ``path``. ``samples`` are the finished ones, those of earlier sessions included.

    ``timings`` are seconds and steps summed over sessions. Raises UserError if the directory belongs to another
    config, holds damaged lines, or can't be written. ``notice`` says what had to be repaired.
    """

    def __init__(self, path: pathlib.Path, config: dict[str, Any]):
        self.path, self.notice = path, ""
        with self._explained(path):
            path.mkdir(parents=True, exist_ok=True)
            self._claim(config)
            self.samples = self._read_samples()
            self._drop_unfinished_trace()
            self.timings: dict[str, float] = self._read_timings()
            self._samples_file = open(path / SAMPLES, "a", encoding="utf-8")  # noqa: SIM115 (open for the whole run)
            self._trace_file: TextIO | None = None

    @property
    def finished(self) -> set[tuple[str, int]]:
        """(id, sample) of what need not run again."""
        return {(row["id"], row["sample"]) for row in self.samples}

    def add_sample(self, row: dict[str, Any], timings: dict[str, float]) -> None:
        """Append a finished sample; it is on disk when this returns. ``timings``: of all sessions so far."""
        with self._explained(self.path / SAMPLES):
            self._samples_file.write(json.dumps(row, ensure_ascii=False) + "\n")
            self._samples_file.flush()
        self.samples.append(row)
        self.timings = timings
        self._write(TIMINGS, timings)

    def add_trace(self, row: dict[str, Any]) -> None:
        """Append one eviction."""
        with self._explained(self.path / TRACE):
            if self._trace_file is None:
                self._trace_file = open(self.path / TRACE, "a", encoding="utf-8")  # noqa: SIM115
            self._trace_file.write(json.dumps(row) + "\n")
            self._trace_file.flush()

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json whole or not at all."""
        self._write(SUMMARY, summary)

    def close(self) -> None:
        """Close the files. A buffer that could not be flushed has been reported already."""
        for file in (self._samples_file, self._trace_file):
            if file is not None:
                with contextlib.suppress(OSError):
                    file.close()

    def _claim(self, config: dict[str, Any]) -> None:
        if not (self.path / CONFIG).exists():
            if (self.path / SAMPLES).exists():
                raise UserError(f"has {SAMPLES} but no {CONFIG}", where=str(self.path), mend="give a new --out")
            self._write(CONFIG, config)
            return
        before = self._read_json(CONFIG)
        # What JSON makes of the config, so that tuples and lists compare equal.
        now = json.loads(json.dumps(config))
        changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        if changed:
            key = changed[0]
            raise UserError(
                f"was made with another config ({key} {before.get(key)!r}, now {now.get(key)!r})",
                where=str(self.path),
                mend="give a new --out, or the flags it was made with",
            )

    def _read_samples(self) -> list[dict[str, Any]]:
        path = self.path / SAMPLES
        rows = []
        for number, line in self._whole_lines(path):
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict) or any(field not in row for field in _FIELDS):
                mend = "delete that line, or give a new --out"
                raise UserError("is not a sample", where=f"{path}:{number}", mend=mend)
            rows.append(row)
        return rows

    def _whole_lines(self, path: pathlib.Path) -> Iterator[tuple[int, str]]:
        """Numbered lines. A last line without its newline was torn by a kill or a full disk: it is cut off."""
        if not path.exists():
            return
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(path, whole)
            self.notice = f"{path}: cut off a torn last line of {len(data) - whole} bytes"
        for number, line in enumerate(data[:whole].decode("utf-8", "replace").split("\n")[:-1], 1):
            yield number, line

    def _drop_unfinished_trace(self) -> None:
        """A sample that was cut off runs again from its start, so its evictions must not be listed twice."""
        path = self.path / TRACE
        if not path.exists():
            return
        finished, kept = self.finished, []
        for number, line in self._whole_lines(path):
            try:
                row = json.loads(line)
                key = row["id"], row["sample"]
            except (ValueError, TypeError, KeyError):
                raise UserError("is not an eviction", where=f"{path}:{number}", mend="give a new --out") from None
            if key in finished:
                kept.append(line + "\n")
        self._write_text(TRACE, "".join(kept))

    def _read_timings(self) -> dict[str, float]:
        return self._read_json(TIMINGS) if (self.path / TIMINGS).exists() else {}

    def _read_json(self, name: str) -> dict[str, Any]:
        try:
            value = json.loads((self.path / name).read_text(encoding="utf-8"))
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise UserError("is damaged", where=str(self.path / name), mend="give a new --out")
        return value

    def _write(self, name: str, value: dict[str, Any]) -> None:
        self._write_text(name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def _write_text(self, name: str, text: str) -> None:
        with self._explained(self.path / name):
            temporary = self.path / f".{name}.new"
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, self.path / name)

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
