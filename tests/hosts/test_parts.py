"""What several hosts have written becomes one run's directory, whatever happened on the way."""

import json
import shutil

import pytest

from jkv.errors import UserError
from jkv.run import host_parts as parts
from jkv.run.directory import BeingWritten, RunDirectory
from jkv.run.host_parts import Finished, fold, part
from tests.command.conftest import read_jsonl
from tests.command.test_output import CONFIG, eviction, sample

TRACED = {**CONFIG, "trace": True}


def write(path, ids, times, config=TRACED, unfinished=()):
    """A run's directory, or a part of it, with these samples."""
    directory = RunDirectory(path, config, trace=True)
    for id in (*ids, *unfinished):
        directory.add_trace(eviction(id))
        if id in ids:
            directory.add_sample(sample(id), dict(zip(("wall", "compile", "decode", "steps"), times, strict=True)))
    directory.close()


def ids(path, name="samples.jsonl"):
    return [row["id"] for row in read_jsonl(path / name)]


@pytest.fixture
def out(tmp_path):
    """An earlier session's two samples, and two hosts that were broken off."""
    write(tmp_path, ["a", "b"], (10.0, 1.0, 8.0, 100.0))
    write(part(tmp_path, 0), ["c"], (3.0, 2.0, 2.0, 20.0), unfinished=["x"])
    write(part(tmp_path, 1), ["d", "e"], (4.0, 1.5, 3.0, 30.0))
    with open(part(tmp_path, 1) / "samples.jsonl", "ab") as file:
        file.write(b'{"id": "f", "sam')
    return tmp_path


def assert_folded(out):
    assert sorted(ids(out)) == ["a", "b", "c", "d", "e"]
    assert sorted(ids(out, "trace.jsonl")) == ["a", "b", "c", "d", "e"]
    # The hosts worked side by side: the longest counts, and the mean of their steps.
    assert json.loads((out / "timings.json").read_text()) == {
        "wall": 14.0,
        "compile": 3.0,
        "decode": 11.0,
        "steps": 125.0,
    }
    assert parts.parts(out) == []


def test_parts_are_folded(out):
    assert "cut off a torn last line of 16 bytes" in fold(out)
    assert_folded(out)
    assert fold(out) == ""
    directory = RunDirectory(out, TRACED, trace=True)
    assert len(directory.samples) == 5
    directory.close()


@pytest.mark.parametrize("broken", ["adopt", "replace_timings", "remove"])
def test_folding_that_is_broken_off_is_ended_by_the_next(out, monkeypatch, broken):
    """Before anything, between the lines of a file, before the last step: nothing is lost or there twice."""

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*((parts, "_remove") if broken == "remove" else (RunDirectory, broken)), killed)
        with pytest.raises(KeyboardInterrupt):
            fold(out)
    if broken == "replace_timings":  # the samples were being appended
        lines = (out / "samples.jsonl").read_bytes().splitlines(keepends=True)
        (out / "samples.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][:5])
    fold(out)
    assert_folded(out)


def test_into_an_open_run(out):
    run = RunDirectory(out, TRACED, trace=True)
    fold(out, run)
    assert {row["id"] for row in run.samples} == {"a", "b", "c", "d", "e"}
    run.close()
    assert_folded(out)


def test_parts_of_another_run_are_refused(out):
    shutil.rmtree(part(out, 1))
    write(part(out, 1), ["d"], (1.0, 1.0, 1.0, 1.0), config={**TRACED, "seed": 7})
    with pytest.raises(UserError, match=r"host1\.part: was made with another config \(seed 7, now 0\)"):
        fold(out, run := RunDirectory(out, TRACED, trace=True))
    run.close()
    assert ids(part(out, 1)) == ["d"]
    # A host that failed before its first sample holds nothing.
    shutil.rmtree(part(out, 1))
    write(part(out, 1), [], (), config={**TRACED, "seed": 7})
    fold(out)
    assert sorted(ids(out)) == ["a", "b", "c"]


def test_a_part_that_is_being_written_is_left(out):
    other = RunDirectory(part(out, 0), TRACED, trace=True)
    with pytest.raises(BeingWritten, match="another run is writing there"):
        fold(out)
    other.close()
    fold(out)
    assert_folded(out)


def test_only_what_is_new_is_read(tmp_path):
    seen = Finished(tmp_path / "host0", tmp_path / "host1")
    assert seen.refresh() == set()
    write(tmp_path / "host0", ["a"], (1.0, 1.0, 1.0, 1.0))
    assert seen.refresh() == {("a", 0)}
    file = tmp_path / "host0" / "samples.jsonl"
    line = json.dumps(sample("b")).encode() + b"\n"
    with open(file, "ab") as more:
        more.write(line[:9])
    assert seen.refresh() == {("a", 0)}, "half a line is not a sample yet"
    with open(file, "ab") as more:
        more.write(line[9:])
    (first, _, _) = file.read_bytes().partition(b"\n")
    file.write_bytes(b"#" * len(first) + b"\n" + line)  # what was read is not read again
    assert seen.refresh() == {("a", 0), ("b", 0)}
    with open(file, "ab") as more:
        more.write(b"{}\n")
    with pytest.raises(UserError, match="holds what is not a sample"):
        seen.refresh()


def test_other_directories_are_left_alone(out):
    """Of someone else's files nothing is moved or deleted."""
    for name in ("host1", "host1.part", "hostx.part", "host3.part"):
        (out / name).mkdir(exist_ok=True)
        (out / name / "notes.txt").write_text("mine")
    (out / "host3.part" / "samples.jsonl").write_text("theirs\n")
    fold(out)
    assert sorted(ids(out)) == ["a", "b", "c", "d", "e"]
    for name in ("host1", "host1.part", "hostx.part", "host3.part"):
        assert (out / name / "notes.txt").read_text() == "mine"
    assert (out / "host3.part" / "samples.jsonl").read_text() == "theirs\n"
    assert parts.parts(out) == [out / "host3.part"]
