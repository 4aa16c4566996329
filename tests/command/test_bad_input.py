"""Bad input: one line on stderr, exit code 2, no traceback, nothing computed is lost."""

import json
import os
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.command.conftest import write_rows

IDS = [5, 6, 7, 8]


@pytest.fixture
def refused(run, tiny, task):
    """Run with the tiny model unless told otherwise; assert a refusal and return its line."""

    def command(*arguments, model=tiny, task=task) -> str:
        common = ["--policy", "window", "--budget", "32", "--max-new-tokens", "8"]
        result = run("--model", model, "--task", task, *common, *arguments)
        assert result.code == 2, result
        assert result.out == ""
        lines = result.err.splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        assert len(errors) == 1
        assert lines[-1] == errors[0]
        # The line that says that a run began is no error; nothing else may stand there.
        assert all(line.startswith("0 of ") for line in lines[:-1])
        return errors[0].removeprefix("error: ")

    return command


@pytest.fixture
def copy(tiny, tmp_path):
    """A copy of the tiny model to damage."""
    return shutil.copytree(tiny, tmp_path / "model")


def test_no_such_model(refused, tmp_path):
    assert "no such model" in refused(model="demo-lama")
    assert "no such model" in refused(model=tmp_path / "absent")
    assert "is a file" in refused(model=__file__)


def test_damaged_checkpoints(refused, copy):
    weights, config = copy / "model.safetensors", copy / "config.json"
    whole, described = weights.read_bytes(), json.loads(config.read_text())

    weights.write_bytes(whole[: len(whole) // 2])
    assert "model.safetensors: can't be read as safetensors" in refused(model=copy)
    weights.write_bytes(whole)

    config.write_text(json.dumps({**described, "vocab_size": 96}))
    assert "96" in refused(model=copy)
    config.write_text(json.dumps({**described, "model_type": "mamba", "architectures": ["MambaForCausalLM"]}))
    assert "amba" in refused(model=copy)
    config.write_text("{")
    assert "config.json: isn't JSON" in refused(model=copy)
    config.write_text(json.dumps(described))

    tensors = load_file(weights)
    name = sorted(tensors)[0]
    tensors[name] = np.where(np.arange(tensors[name].size).reshape(tensors[name].shape) == 3, np.nan, tensors[name])
    save_file(tensors, weights, {"format": "pt"})
    assert f"{name} holds NaN or infinity" in refused(model=copy)
    weights.unlink()
    assert "no weights" in refused(model=copy)


BUDGETS = {
    "prompt longer than the budget": (
        ["--budget", "16", "--window", "2"],
        ":3: the prompt has 20 tokens, the budget 16",
    ),
    "sinks + window": (["--sinks", "10", "--window", "20"], "10 sinks + window 20 = 30 don't fit the 28 slots kept"),
    "pinned prompt": (["--pin-prompt", "--window", "10"], ":3: the pinned prompt of 20 + window 10 = 30 tokens"),
    "retain": (["--retain", "32"], "--retain: retain 32 leaves nothing to evict"),
    "retain 0": (["--retain", "0"], "--retain: retain 0 is outside 1..32"),
    "ratio": (["--ratio", "0", "--window", "0"], "--retain: retain 0 is outside 1..32"),
    "window": (["--window", "32", "--ratio", "0.5"], "--window: retain 32 leaves nothing to evict"),
    "full": (["--policy", "full", "--max-new-tokens", "14"], ":3: a prompt of 20 and 14 new tokens don't fit 32 slots"),
    "larger than the machine": (["--budget", "16000000", "--batch-size", "100000"], "the KV buffer takes "),
    "policy": (["--policy", "newest"], "--policy: no policy 'newest'; choose one of "),
    "task": (["--task", "demo2"], "--task: no task 'demo2'"),
    "benchmark": (["--task", "aime24"], "--task: "),
    "task file": (["--task", "absent.jsonl"], "absent.jsonl: no such file"),
    "demo task": (["--task", "demo"], "--task: the demo task uses the demo models' vocabulary"),
    "implementation": (["--implementation", "pallas"], "--implementation: "),
}


@pytest.mark.parametrize("case", BUDGETS.values(), ids=BUDGETS.keys())
def test_budget_policy_task_and_implementation(refused, case):
    arguments, expected = case
    assert expected in refused(*arguments)


def test_a_budget_is_needed_and_asked_for(run, tiny, task):
    result = run("--model", tiny, "--task", task)
    assert result == (2, "", "error: --budget: policy dynts needs a budget; give the number of KV slots\n")


def test_the_default_policy_needs_a_predictor_and_says_how_to_get_one(run, tiny, task):
    what = "policy dynts needs an importance predictor, and the model has none beside it"
    mend = "train one with python -m jkv.train_predictor, or give another --policy"
    result = run("--model", tiny, "--task", task, "--budget", 32)
    assert result == (2, "", f"error: --predictor: {what}; {mend}\n")


ROWS = {
    "not JSON": ("{", "not JSON ("),
    "a list": ("[1]", "a list, not an object"),
    "huge number": ('{"id": 1, "prompt_ids": [' + "9" * 5000 + "]}", "not JSON ("),
    "no id": ({"prompt_ids": IDS}, "needs an id"),
    "bool id": ({"id": True, "prompt_ids": IDS}, "needs an id"),
    "no prompt": ({"id": "b"}, "has no prompt"),
    "two prompts": ({"id": "b", "prompt": "x", "prompt_ids": IDS}, "has prompt and prompt_ids"),
    "unknown field": ({"id": "b", "prompt_ids": IDS, "anwser": "1"}, "unknown field 'anwser'"),
    "empty": ({"id": "b", "prompt_ids": []}, "the prompt is empty"),
    "empty text": ({"id": "b", "prompt": ""}, "the prompt is empty"),
    "no messages": ({"id": "b", "messages": []}, "the prompt is empty"),
    "out of range": ({"id": "b", "prompt_ids": [5, 97]}, "prompt id 97 is outside the vocabulary of 97"),
    "far out of range": ({"id": "b", "prompt_ids": [10**40]}, "is outside the vocabulary of 97"),
    "negative": ({"id": "b", "prompt_ids": [-1]}, "prompt id -1 is outside the vocabulary of 97"),
    "no integers": ({"id": "b", "prompt_ids": [1.5]}, "prompt_ids must be a list of integers"),
    "text for ids": ({"id": "b", "prompt_ids": "5 6"}, "prompt_ids must be a list of integers"),
    "prompt is a list": ({"id": "b", "prompt": IDS}, "prompt must be a string"),
    "messages is text": ({"id": "b", "messages": "hi"}, "messages must be a list of {role, content}"),
    "answer": ({"id": "b", "prompt_ids": IDS, "answer": ["1"]}, "answer must be a string or a number"),
    "duplicate": ({"id": "a", "prompt_ids": IDS}, "id 'a' is also on line 1"),
    "half a character": ('{"id": "b", "prompt": "\\ud800"}', "has half of a surrogate pair"),
}


@pytest.mark.parametrize("case", ROWS.values(), ids=ROWS.keys())
def test_bad_rows_are_refused_by_line(refused, wordy, tmp_path, case):
    row, expected = case
    good = {"id": "a", "prompt_ids": IDS}
    file = tmp_path / "task.jsonl"
    file.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in (good, "", row)))
    message = refused(model=wordy, task=file)
    assert message.startswith(f"{file}:3: ")
    assert expected in message


def test_files_without_a_problem_and_files_that_are_none(refused, tmp_path):
    file = tmp_path / "task.jsonl"
    file.write_text("\n \n")
    assert refused(task=file).startswith(f"{file}: holds no problem")
    file.write_bytes(b'{"id": "\xff"}')
    assert refused(task=file).startswith(f"{file}: not UTF-8 at byte 8")
    file.unlink()
    file.mkdir()
    assert refused(task=file) == f"{file}: Is a directory"


def test_text_needs_a_tokenizer_and_messages_a_template(refused, wordy, tmp_path):
    messages = [{"role": "user", "content": "1 + 1"}]
    for row in ({"prompt": "a"}, {"messages": messages}, {"prompt_ids": IDS, "answer": "1"}):
        file = write_rows(tmp_path / "task.jsonl", [{"id": "a", **row}])
        assert refused(task=file).startswith(f"{file}:1: the model has no tokenizer")
    model = shutil.copytree(wordy, tmp_path / "model")
    settings = json.loads((model / "tokenizer_config.json").read_text())
    file = write_rows(tmp_path / "task.jsonl", [{"id": "a", "messages": messages}])
    for template, expected in (
        (None, "has no chat template"),
        ("{{ raise_exception('no users') }}", "the chat template refuses the messages (no users)"),
        ("{{ 1 / 0 }}", "the chat template refuses the messages (division by zero)"),
        ("{% if %}", "the chat template refuses the messages ("),
    ):
        (model / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": template}))
        assert expected in refused(model=model, task=file)


def test_out_that_is_a_file_or_below_one(refused, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    assert refused("--out", file).startswith(f"{file}: File exists")
    assert refused("--out", file / "below").startswith(f"{file / 'below'}: Not a directory")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_out_that_can_not_be_written(refused, tmp_path):
    tmp_path.chmod(0o500)
    assert "Permission denied" in refused("--out", tmp_path / "out")


def test_a_model_is_no_out(refused, copy):
    before = {file.name: file.read_bytes() for file in copy.iterdir()}
    assert "holds a config.json that no run of this version wrote" in refused("--out", copy, model=copy)
    assert {file.name: file.read_bytes() for file in copy.iterdir()} == before


def test_a_failed_start_does_not_hold_the_directory(refused, tmp_path):
    out = tmp_path / "out"
    message = refused("--implementation", "pallas", "--out", out)
    assert message.endswith("; auto takes what there is")
    assert "was made with another config" not in refused("--implementation", "pallas", "--seed", "1", "--out", out)


def test_out_of_memory_is_one_line(refused, monkeypatch):
    def explode(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.\nmore")

    monkeypatch.setattr("jkv.engine.engine.Engine.compile", explode)
    assert refused().startswith(
        "out of memory (RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.); lower --batch-size"
    )
