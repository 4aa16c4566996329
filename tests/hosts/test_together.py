"""Two processes of four devices each, through jax.distributed on this machine, leave what one process of eight does."""

import contextlib
import csv
import io
import json
import pathlib
import signal
import subprocess
import time

import pytest

from jkv.distributed.hosts import HEARTBEAT_S
from tests.command.conftest import read_jsonl, write_rows
from tests.support.processes import finish, launch
from tests.support.requests import prompts

pytestmark = pytest.mark.slow

LIMIT, SAMPLES = 12, 2
TIMED = ("wall_s", "compile_s", "tps", "tps_paper")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> pathlib.Path:
    """A second task, so that a sweep has two runs of one program, and a cache of compiled programs."""
    directory = tmp_path_factory.mktemp("hosts")
    rows = [{"id": f"p{i}", "prompt_ids": ids} for i, ids in enumerate(prompts(5, 29, 12, 20, 7, vocabulary=80))]
    write_rows(directory / "task.jsonl", rows)
    return directory


def start(place: pathlib.Path, out: pathlib.Path, processes: int) -> list[subprocess.Popen]:
    """The same command on every host."""
    words = [
        "jkv.sweep", "--models", "demo-llama", "--tasks", "demo", str(place / "task.jsonl"),
        "--policies", "window", "--budgets", "96", "--no-full", "--limit", str(LIMIT), "--samples", str(SAMPLES),
        "--batch-size", "8", "--max-new-tokens", "240", "--mesh", "data=8", "--out", str(out), "--quiet",
    ]  # fmt: skip
    return launch(words, processes, place / "cache")


def samples(out: pathlib.Path) -> dict[tuple, str]:
    """Every sample by (run, problem, sample)."""
    found: dict[tuple, str] = {}
    for path in out.glob("runs/*/*/*/samples.jsonl"):
        for row in read_jsonl(path):
            key = (*path.parent.parts[-3:], row["id"], row["sample"])
            assert key not in found
            found[key] = json.dumps(row, sort_keys=True)
    return found


def assert_same(out: pathlib.Path, whole: pathlib.Path) -> None:
    assert samples(out) == samples(whole)
    ours, theirs = (list(csv.DictReader(io.StringIO((d / "results.csv").read_text("utf-8")))) for d in (out, whole))
    strip = lambda rows: [{name: value for name, value in row.items() if name not in TIMED} for row in rows]
    assert strip(ours) == strip(theirs)
    for path in whole.glob("runs/*/*/*/summary.json"):
        one, two = (json.loads(p.read_text()) for p in (path, out / path.relative_to(whole)))
        assert {k: v for k, v in two.items() if k not in TIMED} == {k: v for k, v in one.items() if k not in TIMED}
    left = [str(path.relative_to(out)) for path in out.rglob("*") if path.suffix == ".part" or path.name == ".hosts"]
    assert not left, "parts are folded, and the note of the meeting is gone"


@pytest.fixture(scope="module")
def whole(place) -> pathlib.Path:
    """What one process leaves."""
    finish(start(place, place / "whole", 1))
    found = samples(place / "whole")
    assert len(found) == (LIMIT + 5) * SAMPLES
    summary = json.loads(next((place / "whole").glob("runs/*/demo/*/summary.json")).read_text())
    assert 0 < summary["pass_at_1"] < 1, "an accuracy that can differ"
    return place / "whole"


def test_two_hosts_leave_what_one_does(place, whole):
    finish(start(place, place / "two", 2))
    assert_same(place / "two", whole)


def until_both_write(out: pathlib.Path, started: list[subprocess.Popen], since: float) -> None:
    """Both hosts are in the middle of a run: each has written a sample ``since`` then."""
    wrote = lambda host: any(
        path.stat().st_size and path.stat().st_mtime > since
        for path in out.glob(f"runs/*/*/*/host{host}.part/samples.jsonl")
    )
    while True:
        with contextlib.suppress(FileNotFoundError):  # folded between the look and the look at it
            if wrote(0) and wrote(1):
                return
        for process in started:
            assert process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.005)


def test_one_host_is_killed_then_both_are_terminated(place, whole):
    """Nothing is lost, nothing is there twice."""
    out = place / "killed"
    began, started = time.time(), start(place, out, 2)
    first, second = started
    until_both_write(out, started, began)
    second.kill()
    _, err = first.communicate(timeout=HEARTBEAT_S + 120)
    assert first.returncode == -signal.SIGABRT
    assert "host 0 of 2 (from 0) ended, most likely as another host was lost" in err
    assert "run the same command on all hosts to continue" in err
    second.communicate()

    began, started = time.time(), start(place, out, 2)
    until_both_write(out, started, began)
    since = time.monotonic()
    for process in started:
        process.terminate()
    for process in started:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 143, err[-3000:]
        assert "run the same command to continue" in err
        assert "lost" not in err
    assert time.monotonic() - since < 5.5

    finish(start(place, out, 2))
    assert_same(out, whole)
