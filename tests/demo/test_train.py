"""Training: a few tiny steps, a resume that changes nothing, and what is refused."""

import dataclasses
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from converters.hf import read_hf
from jkv.demo import state, train
from jkv.demo.tokenizer import vocabulary
from jkv.errors import UserError
from jkv.terminal.flags import field_help

# One step of each stage.
TINY = train.TrainConfig(arch="qwen2", seed=3, short_steps=1, plain_steps=1, full_steps=1, tokens=1)


def _weights(directory: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(directory / train.STATE) as stored:
        return {name: stored[name] for name in stored.files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The checkpoint of three steps in one go."""
    return train.train(dataclasses.replace(TINY, out=str(tmp_path_factory.mktemp("whole"))))


@pytest.mark.slow
def test_resume_is_bit_equal(whole: pathlib.Path, tmp_path: pathlib.Path):
    config = dataclasses.replace(TINY, out=str(tmp_path), stop_after=2)
    train.train(config)
    assert not (tmp_path / "model.safetensors").exists()
    assert int(_weights(tmp_path)["step"]) == 2
    train.train(dataclasses.replace(config, resume=True, stop_after=0))
    resumed, straight = _weights(tmp_path), _weights(whole)
    assert resumed.keys() == straight.keys()
    for name in straight:
        np.testing.assert_array_equal(resumed[name], straight[name])
    assert (tmp_path / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_export(whole: pathlib.Path):
    """transformers and jkv read the same weights: the trained ones, rounded to bfloat16."""
    theirs = AutoModelForCausalLM.from_pretrained(whole, dtype=torch.float32)
    ours = read_hf(whole, "float32")
    np.testing.assert_array_equal(theirs.model.embed_tokens.weight.detach().numpy(), np.asarray(ours.embed[...]))
    fresh = {leaf.tobytes() for leaf in _weights(whole).values() if leaf.shape == (len(vocabulary()), 128)}
    assert len(fresh) == 3  # the embedding and its two moments: the optimizer has moved
    assert {path.name for path in whole.iterdir()} == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", train.STATE,
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"seed": 4}, {"tokens": 2}, {"arch": "llama"}, {"full_steps": 2}])
def test_resume_of_another_run(whole: pathlib.Path, change: dict):
    with pytest.raises(UserError, match=r"the training state is of arch=qwen2 .*, not of arch="):
        train.train(dataclasses.replace(TINY, out=str(whole), resume=True, **change))


@pytest.mark.slow
def test_init(whole: pathlib.Path, tmp_path: pathlib.Path):
    """Going on from a checkpoint: with a rate of next to nothing, its weights come out again."""
    train.train(
        dataclasses.replace(TINY, init=str(whole), plain_steps=0, full_steps=0, learning_rate=1e-30, out=str(tmp_path))
    )
    assert (tmp_path / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_init_of_another_architecture(whole: pathlib.Path, tmp_path: pathlib.Path):
    with pytest.raises(UserError, match="isn't a demo checkpoint of llama"):
        train.train(dataclasses.replace(TINY, arch="llama", init=str(whole), out=str(tmp_path)))


def test_resume_of_nothing(tmp_path: pathlib.Path):
    with pytest.raises(UserError, match="no training state to resume"):
        train.train(dataclasses.replace(TINY, out=str(tmp_path), resume=True))


def test_resume_of_a_torn_state(tmp_path: pathlib.Path):
    like = {"w": jnp.arange(100.0), "n": jnp.zeros((), jnp.int32)}
    path = tmp_path / train.STATE
    state.save(path, like, 7, "a run")
    again, step = state.load(path, like, "a run")
    assert step == 7
    np.testing.assert_array_equal(again["w"], like["w"])
    stored = path.read_bytes()
    for size in (0, 100, len(stored) // 2, len(stored) - 1):
        path.write_bytes(stored[:size])
        with pytest.raises(UserError, match="can't be read"):
            state.load(path, like, "a run")


def test_resume_of_another_shape(tmp_path: pathlib.Path):
    path = tmp_path / train.STATE
    state.save(path, {"w": jnp.zeros(3)}, 7, "a run")
    for like in ({"w": jnp.zeros(4)}, {"w": jnp.zeros(3, jnp.int32)}, {"w": jnp.zeros(3), "x": jnp.zeros(3)}):
        with pytest.raises(UserError, match="is missing or has another shape"):
            state.load(path, like, "a run")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "-1"], "--seed: expected at least 0, got -1"),
        (["--tokens", "0"], "--tokens: expected at least 1, got 0"),
        (["--learning-rate", "-0.5"], "--learning-rate: expected more than 0, got -0.5"),
        (["--arch", "gpt2"], "argument --arch: invalid choice: 'gpt2'"),
        (["--short-steps", "0", "--plain-steps", "0", "--full-steps", "0"], "no steps to train"),
    ],
)
def test_bad_flags(arguments: list[str], message: str):
    with pytest.raises(UserError, match=message):
        train.main(arguments)


def test_every_field_has_help():
    assert all(field_help(train.TrainConfig).values())
