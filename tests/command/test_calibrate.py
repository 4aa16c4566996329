"""Query statistics, measured by the command, against what transformers computes for the same tokens."""

import json
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import jkv.models.query_statistics
import jkv.run.calibrate
from jkv import calibrate
from jkv.config.calibrate import CalibrateConfig
from jkv.terminal import command as cli
from tests.command.conftest import Result, read_jsonl
from tests.support.tiny import FAMILY, Tiny

FILE = "query_statistics.safetensors"
LLAMA, QWEN2, YARN, QWEN3 = FAMILY[0], FAMILY[2], FAMILY[3], FAMILY[4]


@pytest.fixture
def measure(capfd, task, monkeypatch):
    """Run ``python -m jkv.calibrate`` on the task; also the token sequences that it measured on."""
    sequences: list[tuple[int, ...]] = []
    plain = jkv.models.query_statistics.measure_query_statistics

    def watch(model, given):
        sequences[:] = given
        return plain(model, sequences)

    monkeypatch.setattr(jkv.run.calibrate, "measure_query_statistics", watch)

    def command(*arguments: Any, task=task) -> tuple[Result, list[tuple[int, ...]]]:
        capfd.readouterr()
        common = ["--task", task, "--max-new-tokens", 30]
        with pytest.raises(SystemExit) as leaving:
            cli.run(calibrate.main, [str(a) for a in [*common, *arguments]])
        code = leaving.value.code
        return Result(code if isinstance(code, int) else 0, *capfd.readouterr()), list(sequences)

    return command


def statistics_by_transformers(tiny: Tiny, sequences: list[tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Mean and mean modulus of what q_proj (qwen3: q_norm) puts out, over all tokens of all sequences."""
    model = tiny.build()
    queries: list[list[np.ndarray]] = [[] for _ in model.model.layers]
    shape = (-1, model.config.num_attention_heads, model.config.head_dim)
    for layer, block in enumerate(model.model.layers):
        attention = block.self_attn
        module = attention.q_norm if tiny.kind == "qwen3" else attention.q_proj
        keep = lambda _module, _inputs, out, to=queries[layer]: to.append(out[0].reshape(shape).double().numpy())
        module.register_forward_hook(keep)
    with torch.no_grad():
        for sequence in sequences:
            model(torch.tensor([sequence]), use_cache=False)
    every = np.stack([np.concatenate(q) for q in queries])  # [L, T, N, H]
    assert every.shape[1] == sum(map(len, sequences))
    half = every.shape[-1] // 2
    return {"mean": every.mean(1), "modulus": np.hypot(every[..., :half], every[..., half:]).mean(1)}


@pytest.mark.parametrize("tiny_model", [LLAMA, QWEN3, QWEN2, YARN], ids=lambda tiny: tiny.name)
def test_statistics_are_those_of_transformers(measure, tiny_model, tmp_path):
    tiny_model.save(tmp_path)
    result, sequences = measure("--model", tmp_path)
    assert (result.code, result.out) == (0, "")
    path = tmp_path / FILE
    assert result.err.splitlines()[-1] == f"queries of {sum(map(len, sequences))} tokens measured: {path}"
    assert len(sequences) == 3
    assert sum(map(len, sequences)) > 60
    got, expected = load_file(path), statistics_by_transformers(tiny_model, sequences)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].dtype == np.float32
        assert got[name].shape == value.shape
        np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def measured(tiny, task, tmp_path_factory):
    """The tiny model with its statistics beside it."""
    model = shutil.copytree(tiny, tmp_path_factory.mktemp("measured") / "model")
    jkv.run.calibrate.calibrate(CalibrateConfig(str(model), task=str(task), max_new_tokens=30))
    return model


def test_the_same_command_gives_the_same_bytes(measure, measured, tiny, tmp_path):
    # Neither the batch nor the order of finishing matters.
    for batch_size in (16, 1):
        result, _ = measure("--model", tiny, "--batch-size", batch_size, "--out", tmp_path / "out")
        assert result.code == 0
        assert (tmp_path / "out").read_bytes() == (measured / FILE).read_bytes()
    assert not (tiny / FILE).exists()


def test_triattention_runs_with_what_was_measured(run, measured, tiny, task, tmp_path):
    decode = ["--task", task, "--policy", "triattention", "--budget", 32, "--max-new-tokens", 60, "--ignore-eos"]
    beside, given = tmp_path / "beside", tmp_path / "given"
    assert run("--model", measured, *decode, "--out", beside).code == 0
    assert run("--model", tiny, *decode, "--predictor", measured / FILE, "--out", given).code == 0
    summary = json.loads((beside / "summary.json").read_text("utf-8"))
    assert summary["evictions"] > 0
    assert summary["peak_slots"] == 32
    tokens = [{row["id"]: row["token_ids"] for row in read_jsonl(out / "samples.jsonl")} for out in (beside, given)]
    assert tokens[0] == tokens[1]


def test_bad_input_is_one_line(measure, tiny, task, tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    for arguments, expected in (
        (["--limit", 0], "--limit: 0 is below 1"),
        (["--model", tmp_path / "absent"], "no such model"),
        (["--model", tiny, "--out", tmp_path / "absent" / "file"], "can't be written"),
    ):
        result, _ = measure(*arguments)
        assert result.code == 2
        (line,) = result.err.splitlines()
        assert line.startswith("error: ")
        assert expected in line
    result, _ = measure("--model", tiny, task=tmp_path / "empty.jsonl")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "holds no problem" in result.err
