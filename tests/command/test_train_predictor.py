"""``python -m jkv.train_predictor`` from end to end: three stages, killed and continued, and mistakes."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from jkv import train_predictor
from jkv.demo import tokenizer
from jkv.models.predictor import NAMES
from jkv.terminal import command as cli
from tests.command.conftest import Result, read_jsonl, write_rows
from tests.support.tiny import FAMILY

SHORT = ("--limit", 24, "--epochs", 2, "--batch", 8, "--micro-batch", 4, "--held-out", 0.25, "--horizon", 16)


@pytest.fixture
def train(capfd) -> Callable[..., Result]:
    """Run the command in this process."""

    def command(*arguments: Any) -> Result:
        capfd.readouterr()
        with pytest.raises(SystemExit) as leaving:
            cli.run(train_predictor.main, [str(a) for a in arguments])
        code = leaving.value.code
        return Result(code if isinstance(code, int) else 0, *capfd.readouterr())

    return command


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> pathlib.Path:
    """A short training on the demo."""
    out = tmp_path_factory.mktemp("trained")
    train_predictor.main([str(a) for a in (*SHORT, "--out", out, "--quiet")])
    return out


def test_what_a_training_leaves(trained):
    names = {path.name for path in trained.iterdir()}
    assert names == {
        "traces", "labels", "training", "predictor.safetensors", "predictor.json", "summary.json",
        "loss.png", "loss.svg", "trace.png", "trace.svg",
    }  # fmt: skip
    tensors = load_file(trained / "predictor.safetensors")
    assert [tensors[name].shape for name in NAMES] == [(256, 128), (64, 256), (1, 64)]
    summary = json.loads((trained / "summary.json").read_text())
    assert set(summary["held_out"]) == {"predictor", "random", "recency"}
    assert set(summary["held_out"]["predictor"]) == {"spearman", "top20", "top30", "top40"}
    assert summary["train_traces"] + summary["held_out_traces"] <= 24
    assert (trained / "loss.png").read_bytes()[:4] == b"\x89PNG"
    log = read_jsonl(trained / "training" / "log.jsonl")
    assert sum("step" in line for line in log) == summary["steps"]
    assert json.loads((trained / "predictor.json").read_text())["layer"] is None


def test_decode_takes_it_by_file_and_by_directory(trained, run, tmp_path):
    common = ("--policy", "dynts", "--budget", 96, "--limit", 2, "--max-new-tokens", 150, "--temperature", 0)
    for i, place in enumerate((trained, trained / "predictor.safetensors")):
        assert run(*common, "--predictor", place, "--out", tmp_path / str(i)).code == 0
    first, second = (read_jsonl(tmp_path / name / "samples.jsonl") for name in ("0", "1"))
    assert sorted(map(str, first)) == sorted(map(str, second))
    assert sum(row["evictions"] for row in first) > 0


@pytest.mark.slow
def test_other_labels_losses_and_layers_reuse_traces(trained, train, run, tmp_path):
    samples = trained / "traces" / "samples.jsonl"
    before = samples.read_bytes(), samples.stat().st_mtime_ns
    for i, words in enumerate((
        ("--label", "future", "--loss", "ranking"),
        ("--layer", 1, "--scaling", "power"),
        ("--hidden", "recompute"),
    )):  # fmt: skip
        result = train(*SHORT, *words, "--data", trained, "--out", tmp_path / str(i))
        assert result.code == 0, result.err
        assert "1 of 3, traces" in result.err
        assert "overlap" not in result.out
        assert "recency" in result.out
    assert (samples.read_bytes(), samples.stat().st_mtime_ns) == before
    assert json.loads((tmp_path / "1" / "predictor.json").read_text())["layer"] == 1
    # Recomputed hidden states are the stored ones, bit for bit, and so is what is learned from them.
    for name in NAMES:
        one, other = (load_file(x / "predictor.safetensors")[name] for x in (trained, tmp_path / "2"))
        assert one.tobytes() == other.tobytes()
    common = ("--policy", "dynts", "--budget", 96, "--limit", 2, "--max-new-tokens", 120, "--temperature", 0)
    assert run(*common, "--predictor", tmp_path / "1").code == 0


def test_the_same_command_again_does_nothing_anew(trained, train):
    files = {path: path.stat().st_mtime_ns for path in (trained / "labels").rglob("*") if path.is_file()}
    weights = (trained / "predictor.safetensors").read_bytes()
    result = train(*SHORT, "--out", trained)
    assert result.code == 0
    assert "(0 traces now," in result.err
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert (trained / "predictor.safetensors").read_bytes() == weights


def refused(result: Result, expected: str) -> None:
    assert (result.code, result.out) == (2, "")
    line = result.err.splitlines()[-1]
    assert line.startswith("error: ")
    assert expected in line


def test_another_config_in_the_same_place_is_refused(trained, train):
    refused(train(*SHORT, "--out", trained, "--learning-rate", 0.1), "another config (learning_rate 0.0005, now 0.1)")
    refused(train(*SHORT, "--out", trained, "--seed", 7), "prompts or answers have changed")


def test_a_model_without_thoughts_is_refused(train, tiny, wordy, tmp_path):
    refused(train("--model", tiny, "--out", tmp_path), "the vocabulary has no <think> token")


def test_a_task_without_answers_is_refused(train, wordy, tmp_path):
    task = write_rows(tmp_path / "task.jsonl", [{"id": "a", "prompt": "<bos> a = 1 + 2 ? a <think>"}])
    refused(train("--task", task, "--out", tmp_path / "out"), "no problem has an answer")


def test_a_task_without_a_correct_trace_is_refused(train, wordy, tmp_path):
    """A model of random weights answers nothing; nor does a short completion."""
    rows = [{"id": "a", "prompt": "<bos> a = 1 + 2 ? a <think>", "answer": "a 3"}]
    task = write_rows(tmp_path / "task.jsonl", rows)
    result = train("--task", task, "--model", wordy, "--max-new-tokens", 5, "--out", tmp_path / "out")
    refused(result, "no trace to learn from: 0 traces of 1 completions (1 wrong")
    result = train("--task", task, "--out", tmp_path / "one")
    refused(result, "1 problem with a correct trace: at least 2 are needed")


def test_a_predictor_of_another_width_is_refused(trained, run, tmp_path, wordy):
    refused(run("--model", wordy, "--policy", "dynts", "--budget", 96, "--predictor", trained), "is_head.0.weight is")
    (tmp_path / "predictor.safetensors").write_bytes((trained / "predictor.safetensors").read_bytes())
    (tmp_path / "predictor.json").write_text('{"layer": 3}')
    common = ("--policy", "dynts", "--budget", 96)
    refused(run(*common, "--predictor", tmp_path), "layer 3 is none of this model's 3")
    (tmp_path / "predictor.json").write_text("[")
    refused(run(*common, "--predictor", tmp_path), "is no predictor's config")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--seed", 0), "--seed: 0 gives the problems that the demo is evaluated on"),
        (("--held-out", 1), "--held-out: 1.0 is outside (0, 1)"),
        (("--epochs", 0), "--epochs: 0 is below 1"),
        (("--learning-rate", 0), "--learning-rate: 0.0 is not above 0"),
        (("--layer", 3), "--layer: 3 is none of the model's 3 layers"),
        (("--label", "all"), "argument --label: invalid choice: 'all'"),
        (("--data", ""), "--data: is empty"),
        pytest.param(("--task", "aime24"), "aime24", marks=pytest.mark.slow),  # it looks for the hub
    ],
)
def test_bad_flags_are_one_line(train, tmp_path, words, expected):
    refused(train(*words, "--out", tmp_path / "out"), expected)


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_loses_nothing(trained, train, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("jkv.predictor_training.store.save_file", full)
        refused(train(*SHORT, "--out", tmp_path / "out"), "No space left on device")
    assert not list((tmp_path / "out").rglob(".*.new"))
    assert train(*SHORT, "--out", tmp_path / "out").code == 0
    assert (tmp_path / "out" / "predictor.safetensors").read_bytes() == (trained / "predictor.safetensors").read_bytes()


def count(out: pathlib.Path) -> dict[str, int]:
    """How far each stage has come."""
    samples = out / "traces" / "samples.jsonl"
    log = out / "training" / "log.jsonl"
    return {
        "traces": samples.read_bytes().count(b"\n") if samples.exists() else 0,
        "labels": len(list((out / "labels").rglob("*.safetensors"))) if (out / "labels").exists() else 0,
        "training": log.read_bytes().count(b'"step"') if log.exists() else 0,
    }


@pytest.mark.slow
def test_killed_in_each_stage_at_a_random_moment(tmp_path):
    """kill -9, then the same command, until it is through: the same weights as without, nothing done twice."""
    rng = random.Random(os.urandom(8).hex())
    words = [sys.executable, "-m", "jkv.train_predictor", *map(str, (*SHORT, "--epochs", 12, "--batch-size", 4))]
    environment = {
        **os.environ, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }  # fmt: skip
    subprocess.run([*words, "--out", tmp_path / "whole", "--quiet"], env=environment, check=True, timeout=600)
    torn, kills = tmp_path / "torn", 0
    made: dict[str, dict[str, int]] = {}
    for stage, goal in (("traces", 23), ("labels", 23), ("training", 26)):
        at = rng.randrange(1, goal)
        process = subprocess.Popen([*words, "--out", torn, "--quiet"], env=environment)
        while process.poll() is None and count(torn)[stage] < at:
            time.sleep(0.001)
        if process.poll() is None:
            time.sleep(rng.random() * 0.05)
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        made[stage] = {str(p): p.stat().st_mtime_ns for p in (torn / "labels").rglob("*.safetensors")}
    assert kills == 3
    subprocess.run([*words, "--out", torn, "--quiet"], env=environment, check=True, timeout=600)

    samples = read_jsonl(torn / "traces" / "samples.jsonl")
    assert len({(row["id"], row["sample"]) for row in samples}) == len(samples) == 24
    for found in made.values():  # no label was made twice
        assert all(pathlib.Path(p).stat().st_mtime_ns == t for p, t in found.items())
    log, whole = (read_jsonl(out / "training" / "log.jsonl") for out in (torn, tmp_path / "whole"))
    assert log == whole
    for name in ("predictor.safetensors", "predictor.json", "summary.json", "loss.svg", "trace.svg"):
        assert (torn / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_tokenizer_alone_is_no_reasoning_model(tmp_path, train):
    FAMILY[0].save(tmp_path / "model")
    tokenizer.save(tmp_path / "model", 512)
    result = train("--model", tmp_path / "model", "--limit", 2, "--max-new-tokens", 8, "--out", tmp_path / "out")
    refused(result, "no trace to learn from: 0 traces of 2 completions")


@pytest.mark.slow
def test_two_devices_learn_what_one_does(trained, tmp_path):
    """Two virtual CPU devices share labels and batches; only the order of addition differs."""
    words = [sys.executable, "-m", "jkv.train_predictor", *map(str, SHORT), "--quiet", "--out", tmp_path]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    subprocess.run(words, env=environment, check=True, timeout=600)
    assert (tmp_path / "traces" / "samples.jsonl").stat().st_size > 0
    labels = [sorted((out / "labels" / "final-horizon16").iterdir()) for out in (trained, tmp_path)]
    assert [p.name for p in labels[0]] == [p.name for p in labels[1]]
    for one, other in zip(*labels, strict=True):
        one, other = load_file(one), load_file(other)
        for name in ("answer", "future", "hidden"):
            np.testing.assert_allclose(other[name], one[name], atol=1e-5)
    one, other = (load_file(out / "predictor.safetensors") for out in (trained, tmp_path))
    for name in NAMES:
        np.testing.assert_allclose(other[name], one[name], atol=1e-4)
