"""A sweep that is killed, again and again, ends as one that was not."""

import csv
import io
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.command.conftest import read_jsonl

PROBLEMS, KILLS = 40, 8


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    """Starts the demo's sweep, in small. Compiled programs are kept between processes: a start takes seconds."""
    environment = {
        **os.environ, "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }  # fmt: skip

    def start(out: pathlib.Path) -> subprocess.Popen:
        command = [
            sys.executable, "-m", "jkv.sweep", "--config", "configs/sweep_demo.yaml", "--models", "demo-llama",
            "--budgets", "80", "128", "--limit", str(PROBLEMS), "--batch-size", "4", "--out", str(out), "--quiet",
        ]  # fmt: skip
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


def finish(process: subprocess.Popen) -> None:
    _, err = process.communicate(timeout=900)
    assert process.returncode == 0, err


def bytes_written(out: pathlib.Path) -> int:
    return sum(path.stat().st_size for path in out.glob("runs/*/*/*/samples.jsonl"))


def samples(out: pathlib.Path) -> dict[tuple, list[int]]:
    """Tokens of every sample by (model, task, policy and budget, problem, sample)."""
    found: dict[tuple, list[int]] = {}
    for path in out.glob("runs/*/*/*/samples.jsonl"):
        for row in read_jsonl(path):
            key = (*path.parent.parts[-3:], row["id"], row["sample"])
            assert key not in found
            found[key] = row["token_ids"]
    return found


@pytest.mark.slow
def test_kill_9_at_random_moments(shell, tmp_path):
    whole, out, rng = tmp_path / "whole", tmp_path / "out", random.Random(0)
    finish(shell(whole))
    expected = samples(whole)
    assert len(expected) == (1 + 2 * 2) * PROBLEMS
    # A kill comes a moment after so much more was written: the kills cover the whole sweep, torn lines included.
    total = bytes_written(whole)
    marks = sorted(rng.uniform(0, 0.98 * total) for _ in range(KILLS))
    for mark in marks:
        process = shell(out)
        while process.poll() is None and bytes_written(out) <= mark:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05))
        assert process.poll() is None, "the kill came in time"
        process.send_signal(signal.SIGKILL)
        process.communicate()
    process = shell(out)
    finish(process)
    assert samples(out) == expected
    ours, theirs = (list(csv.DictReader(io.StringIO((d / "results.csv").read_text("utf-8")))) for d in (out, whole))
    timed = ("wall_s", "compile_s", "tps", "tps_paper")
    strip = lambda rows: [{name: value for name, value in row.items() if name not in timed} for row in rows]
    assert strip(ours) == strip(theirs)


@pytest.mark.slow
def test_a_torn_last_line_is_mended_with_a_notice(tmp_path):
    """Of the run of a sweep, as of a run alone."""
    command = [
        sys.executable, "-m", "jkv.sweep", "--models", "demo-llama", "--policies", "window", "--budgets", "96",
        "--no-full", "--limit", "3", "--max-new-tokens", "40", "--batch-size", "2", "--out", str(tmp_path),
    ]  # fmt: skip
    finish(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    (path,) = tmp_path.glob("runs/*/*/*/samples.jsonl")
    data = path.read_bytes()
    path.write_bytes(data[: -len(data) // 8])
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "cut off a torn last line of" in done.stderr
    sort = lambda text: sorted(text.decode().splitlines(), key=lambda line: json.loads(line)["id"])
    assert sort(path.read_bytes()) == sort(data)
