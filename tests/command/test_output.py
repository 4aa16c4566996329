"""The output directory: repaired, continued, refused, locked, and full."""

import errno
import io
import json
import subprocess
import sys

import pytest

from jkv.errors import UserError
from jkv.files.run_files import SAMPLES, read_rows
from jkv.run.directory import RunDirectory

CONFIG = {"policy": "window", "seed": 0, "problems": "ab", "weights": "cd"}
TIMES = {"wall": 1.5, "compile": 2.0, "decode": 1.0, "steps": 9.0}


def sample(id="p0", sample=0):
    return {
        "id": id, "sample": sample, "prompt_tokens": 3, "token_ids": [1, 2], "text": "a\u2028\n", "finish": "eos",
        "answer": None, "correct": None, "evictions": 0, "peak_slots": 4, "mean_slots": 3.5,
    }  # fmt: skip


def eviction(id="p0", sample=0, event=0):
    return {"id": id, "sample": sample, "event": event, "position": 9, "granularity": "shared", "kept": [1, 2]}


@pytest.fixture
def out(tmp_path):
    """A directory with two finished samples, one unfinished, and their evictions."""
    path = tmp_path / "out"
    directory = RunDirectory(path, CONFIG, trace=True)
    for n in (0, 1, 2):
        directory.add_trace(eviction(f"p{n}"))
        if n < 2:
            directory.add_sample(sample(f"p{n}"), TIMES)
    directory.write_summary({"tokens": 4})
    directory.close()
    return path


def refusal(path, config=CONFIG) -> str:
    before = {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()} if path.is_dir() else {}
    with pytest.raises(UserError) as error:
        RunDirectory(path, config)
    for name, data in before.items():
        assert (path / name).read_bytes() == data, "a refused directory is left as it is"
    assert "\n" not in str(error.value)
    return str(error.value)


def continued(path, config=CONFIG, trace=True):
    directory = RunDirectory(path, config, trace=trace)
    directory.close()
    return directory


def test_continues_with_what_is_finished(out):
    directory = continued(out)
    assert directory.finished == {("p0", 0), ("p1", 0)}
    assert directory.samples == [sample("p0"), sample("p1")]
    assert read_rows(out / SAMPLES) == directory.samples, "text with other line separators stays on one line"
    assert (directory.timings, directory.notice) == (TIMES, "")
    kept = [json.loads(line)["id"] for line in (out / "trace.jsonl").read_text().splitlines()]
    assert kept == ["p0", "p1"], "the unfinished sample's evictions will be written again"
    assert (out / "summary.json").exists()


@pytest.mark.parametrize("torn", [b"{", b'{"id": "p2", "sam', b"\xc3", b"\0" * 5000, b'{"id": "p2"}'])
def test_torn_last_lines_are_cut_off_with_a_notice(out, torn):
    for name in ("samples.jsonl", "trace.jsonl"):
        with open(out / name, "ab") as file:
            file.write(torn)
    directory = continued(out)
    assert directory.finished == {("p0", 0), ("p1", 0)}
    samples, trace = directory.notice.split("\n")
    assert samples == f"{out / 'samples.jsonl'}: cut off a torn last line of {len(torn)} bytes"
    assert trace.startswith(f"{out / 'trace.jsonl'}: cut off")
    assert continued(out).notice == ""


DAMAGE = {
    "not JSON": b"{]",
    "empty": b"",
    "not UTF-8": b'{"id": "\xff"}',
    "a list": b"[]",
    "fields missing": b'{"id": "p7", "sample": 0}',
    "wrong type": json.dumps({**sample("p7"), "token_ids": 5}).encode(),
    "bool as integer": json.dumps({**sample("p7"), "evictions": True}).encode(),
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("line", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_middle_line_is_refused_by_number(out, line):
    lines = (out / "samples.jsonl").read_bytes().split(b"\n")
    (out / "samples.jsonl").write_bytes(b"\n".join([lines[0], line, *lines[1:]]))
    assert refusal(out).startswith(f"{out / 'samples.jsonl'}:2: is not a sample; delete that line")


def test_a_sample_that_is_there_twice_is_refused(out):
    data = (out / "samples.jsonl").read_bytes()
    (out / "samples.jsonl").write_bytes(data * 2)
    assert refusal(out).startswith(f"{out / 'samples.jsonl'}:3: sample 0 of 'p0' is there twice")


def test_damaged_trace_config_and_timings_are_refused(out):
    for name, where in (
        ("trace.jsonl", "trace.jsonl:1"),
        ("config.json", "config.json"),
        ("timings.json", "timings.json"),
    ):
        data = (out / name).read_bytes()
        (out / name).write_bytes(b"[]\n" + data)
        assert str(out / where) in refusal(out)
        (out / name).write_bytes(data)
    (out / "timings.json").write_text('{"wall": "soon"}')
    assert "timings.json: is missing or damaged" in refusal(out)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"seed": 1}, "(seed 0, now 1)"),
        ({"seed": 1, "policy": "full"}, "(policy 'window', now 'full')"),
        ({"problems": "x"}, "(the task's prompts or answers have changed)"),
        ({"weights": "x"}, "(the model's weights have changed)"),
    ],
)
def test_another_config_is_refused_by_its_first_difference(out, change, expected):
    assert f"{out}: was made with another config {expected}; give a new --out" in refusal(out, {**CONFIG, **change})


def test_a_run_without_a_finished_sample_does_not_hold_the_directory(tmp_path):
    RunDirectory(tmp_path / "out", CONFIG).close()
    with open(tmp_path / "out" / "samples.jsonl", "ab") as file:
        file.write(b'{"id": "p0"')
    other = {**CONFIG, "seed": 1}
    continued(tmp_path / "out", other)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == other


def test_directories_of_something_else_are_left_alone(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    assert "holds a config.json that no run of this version wrote" in refusal(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "summary.json").write_text("{}")
    assert "has results but no config.json" in refusal(tmp_path)
    assert not (tmp_path / "samples.jsonl").exists()
    file = tmp_path / "file"
    file.write_text("")
    assert refusal(file).startswith(f"{file}: File exists")
    assert refusal(file / "below").startswith(f"{file / 'below'}: Not a directory")


def test_two_runs_at_once_are_refused(out):
    directory = RunDirectory(out, CONFIG)
    assert refusal(out) == f"{out}: another run is writing there; wait until it is done, or give a new --out"
    directory.close()
    code = "import sys, os, pathlib; from jkv.run.directory import RunDirectory;" \
        f"RunDirectory(pathlib.Path({str(out)!r}), {CONFIG!r}); os.kill(os.getpid(), 9)"  # fmt: skip
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert continued(out).finished == {("p0", 0), ("p1", 0)}, "a killed run leaves no lock behind"


class Full(io.TextIOWrapper):
    """A file on a disk that fills up: takes ``room`` more characters."""

    room = 70
    mode = "a"  # pyright: ignore  (what open() sets; typing.TextIO asks for it)

    def write(self, text):
        super().write(text[: self.room])
        self.flush()
        if len(text) > self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= len(text)
        return len(text)


@pytest.mark.parametrize("name", ["samples", "trace"])
def test_full_disk_keeps_what_is_finished(out, name):
    directory = RunDirectory(out, CONFIG, trace=True)
    attribute = f"_{name}_file"
    setattr(directory, attribute, Full(getattr(directory, attribute).detach(), encoding="utf-8"))

    def fill_up():
        directory.add_trace(eviction("p2"))
        directory.add_sample(sample("p2"), TIMES)

    with pytest.raises(UserError) as error:
        fill_up()
    directory.close()
    assert str(error.value) == (
        f"{out / name}.jsonl: No space left on device; "
        "mend that and run the same command again: finished samples are kept"
    )
    directory = RunDirectory(out, CONFIG, trace=True)
    assert directory.finished == {("p0", 0), ("p1", 0)}
    assert directory.notice
    directory.add_trace(eviction("p2"))
    directory.add_sample(sample("p2"), TIMES)
    directory.close()
    assert continued(out).finished == {("p0", 0), ("p1", 0), ("p2", 0)}


def test_full_disk_never_leaves_half_a_json_file(out, monkeypatch):
    def write_bytes(path, data):
        with open(path, "wb") as file:
            file.write(data[:3])
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    before = (out / "summary.json").read_bytes()
    directory = RunDirectory(out, CONFIG)
    monkeypatch.setattr("pathlib.Path.write_bytes", write_bytes)
    with pytest.raises(UserError, match="No space left on device"):
        directory.write_summary({"tokens": 5})
    directory.close()
    assert (out / "summary.json").read_bytes() == before
    assert not list(out.glob(".*")), "no leftovers keep the disk full"
