"""A model that one host doesn't hold: hosts hold it together, and leave what one device does."""

import json
import pathlib
import subprocess
import time
from typing import Any

import pytest

from converters.__main__ import main as convert
from converters.hf import write_hf
from jkv.distributed.hosts import HEARTBEAT_S
from jkv.run.host_parts import parts
from tests.command.conftest import read_jsonl, write_rows
from tests.mesh.simulated import LLAMA_8, QWEN_8, model_of
from tests.support.processes import finish, launch
from tests.support.requests import prompts

pytestmark = pytest.mark.slow

TASK = (5, 29, 12, 20, 7, 31, 16, 3, 25, 10, 18)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> pathlib.Path:
    """Two models of eight KV heads, one of them converted, and a task."""
    directory = tmp_path_factory.mktemp("replica")
    write_hf(model_of(LLAMA_8), directory / "llama")
    write_hf(model_of(QWEN_8), directory / "hf")
    convert([str(directory / "hf"), str(directory / "qwen")])
    rows = [{"id": f"p{i}", "prompt_ids": ids} for i, ids in enumerate(prompts(*TASK, vocabulary=96))]
    write_rows(directory / "task.jsonl", rows)
    return directory


def sweep(place: pathlib.Path, out: str, processes: int, *mesh: str) -> list[subprocess.Popen]:
    words = [
        "jkv.sweep", "--models", place / "llama", place / "qwen", "--policies", "rkv", "--budgets", 32, "--no-full",
        "--tasks", place / "task.jsonl", "--samples", 2, "--batch-size", 8, "--max-new-tokens", 40, "--window", 4,
        "--dtype", "float32", "--temperature", 0.8, "--quiet", "--out", place / out,
    ]  # fmt: skip
    return launch([*words, *mesh], processes, place / "cache")


def decode(place: pathlib.Path, out: str, processes: int, *mesh: str) -> list[subprocess.Popen]:
    words = [
        "jkv.decode", "--model", place / "llama", "--policy", "h2o", "--granularity", "head", "--budget", 32,
        "--task", place / "task.jsonl", "--samples", 2, "--batch-size", 8, "--max-new-tokens", 48, "--ignore-eos",
        "--retain", 24, "--window", 4, "--dtype", "float32", "--temperature", 0, "--trace", "--quiet",
        "--out", place / out,
    ]  # fmt: skip
    return launch([*words, *mesh], processes, place / "cache")


def lines(directory: pathlib.Path, name: str = "samples.jsonl") -> dict[tuple, dict[str, Any]]:
    """Of a run's file, by what names a line. Scores are left out: a mesh adds up in another order."""
    rows = list(read_jsonl(directory / name))
    named = {(row["id"], row["sample"], row.get("event")): {**row, "scores": None} for row in rows}
    assert len(named) == len(rows)
    return named


def test_two_replicas_of_two_hosts(place):
    """Sampling, a converted model, and a second model for which all hosts begin anew."""
    finish(sweep(place, "alone", 1))
    finish(sweep(place, "hosts", 4, "--mesh", "data=2,model=4"))
    runs = sorted(path.parent.relative_to(place / "alone") for path in place.glob("alone/runs/*/*/*/samples.jsonl"))
    assert len(runs) == 2
    for run in runs:
        alone, together = (lines(place / out / run) for out in ("alone", "hosts"))
        assert together == alone
        assert len(alone) == 2 * len(TASK)
        assert sum(row["evictions"] for row in alone.values()) > len(TASK)
        one, other = (json.loads((place / out / run / "summary.json").read_text()) for out in ("alone", "hosts"))
        assert other["mesh"] == "data=2,model=4"
        assert other["kv_bytes"] == one["kv_bytes"]
        assert other["recompiles"] == 0
        assert not parts(place / "hosts" / run)


def test_a_host_that_only_helps_is_killed(place):
    """Nothing is lost or there twice; and the run goes on with a host for each replica."""
    finish(decode(place, "whole", 1))
    began, started = time.time(), decode(place, "killed", 2, "--mesh", "model=8")
    first, second = started
    wrote = place / "killed" / "host0.part" / "samples.jsonl"
    while not (wrote.exists() and wrote.stat().st_size and wrote.stat().st_mtime > began):
        assert first.poll() is None, first.communicate()[1][-3000:]
        time.sleep(0.005)
    second.kill()
    _, err = first.communicate(timeout=HEARTBEAT_S + 120)
    second.communicate()
    assert first.returncode < 0 or first.returncode == 1, err[-3000:]
    assert "host 0 of 2 (from 0) ended, most likely as another host was lost" in err
    assert not (place / "killed" / "host1.part").exists(), "only the first host of a replica writes"
    assert 0 < len(lines(place / "killed" / "host0.part")) < 2 * len(TASK)

    finish(decode(place, "killed", 2, "--mesh", "data=2,model=4"))
    assert lines(place / "killed") == lines(place / "whole")
    assert lines(place / "killed", "trace.jsonl") == lines(place / "whole", "trace.jsonl")
    assert len(lines(place / "whole", "trace.jsonl")) > 2 * len(TASK)
