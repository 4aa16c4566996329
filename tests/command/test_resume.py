"""A run that is killed, again and again, ends as one that was not."""

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

PROBLEMS, SAMPLES = 3, 12


@pytest.fixture(scope="module")
def shell(tiny, task, tmp_path_factory):
    """Starts the real command; compiled programs are kept between processes, so that a start takes seconds."""
    environment = {
        **os.environ, "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }  # fmt: skip

    def start(out: pathlib.Path, *more: str) -> subprocess.Popen:
        command = [
            sys.executable, "-m", "jkv.decode", "--model", str(tiny), "--task", str(task), "--policy", "window",
            "--budget", "32", "--samples", str(SAMPLES), "--batch-size", "2", "--max-new-tokens", "300",
            "--ignore-eos", "--trace", "--out", str(out), *more,
        ]  # fmt: skip
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


@pytest.fixture(scope="module")
def whole(shell, tmp_path_factory):
    """What the run gives when nobody kills it."""
    out = tmp_path_factory.mktemp("whole") / "out"
    process = shell(out)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def lines(path: pathlib.Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def stop_in_the_middle(process, out, signum, rng) -> bool:
    """Signal the process a moment after its next sample. False if it was done first."""
    before = lines(out / "samples.jsonl")
    while process.poll() is None and lines(out / "samples.jsonl") == before:
        time.sleep(0.005)
    time.sleep(rng.uniform(0, 0.08))
    process.send_signal(signum)
    process.wait(30)
    return process.returncode != 0


def assert_same(out, whole):
    def by_key(name):
        rows = [json.dumps(row, sort_keys=True) for row in read_jsonl(out / name)]
        assert len(set(rows)) == len(rows)
        return sorted(rows)

    for name in ("samples.jsonl", "trace.jsonl"):
        assert by_key(name) == sorted(json.dumps(row, sort_keys=True) for row in read_jsonl(whole / name))
    ours, theirs = (json.loads((d / "summary.json").read_text()) for d in (out, whole))
    timed = {"wall_s", "compile_s", "tps", "tps_paper"}
    assert {k: v for k, v in ours.items() if k not in timed} == {k: v for k, v in theirs.items() if k not in timed}


@pytest.mark.slow
def test_kill_9(shell, whole, tmp_path):
    kills = 6
    out, rng = tmp_path / "out", random.Random(kills)
    assert len(read_jsonl(whole / "samples.jsonl")) == PROBLEMS * SAMPLES
    killed = 0
    for _ in range(kills):
        process = shell(out)
        killed += stop_in_the_middle(process, out, signal.SIGKILL, rng)
        process.communicate()
    assert killed, "the kills came in time"
    last = shell(out)
    _, err = last.communicate(timeout=120)
    assert last.returncode == 0, err
    assert_same(out, whole)


_IGNORED = pytest.mark.skipif(
    signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
    reason="a shell that starts this in the background ignores SIGINT",
)


@pytest.mark.parametrize(
    ("sent", "code", "word"),
    [
        pytest.param(signal.SIGINT, 130, "interrupted", marks=_IGNORED),
        pytest.param(signal.SIGTERM, 143, "terminated"),
    ],
)
def test_a_signal_says_how_to_continue(shell, whole, tmp_path, sent, code, word):
    out = tmp_path / "out"
    process = shell(out, "--quiet")
    assert stop_in_the_middle(process, out, sent, random.Random(code))
    printed, err = process.communicate()
    assert process.returncode == code
    n = lines(out / "samples.jsonl")
    assert (out / "samples.jsonl").read_bytes().endswith(b"\n")
    assert err == (
        f"{word}: {n} of {PROBLEMS * SAMPLES} samples are finished and kept in {out}: "
        "run the same command to continue\n"
    )
    assert printed == ""
    process = shell(out, "--quiet")
    assert process.communicate(timeout=120) == ("", "")
    assert_same(out, whole)


def test_head_closes_the_pipe(shell, whole):
    """Nothing is lost, nothing is said, and the exit code is the shell's for a closed pipe."""
    process = shell(whole)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 141
    assert "Traceback" not in err
    assert "Error" not in err
