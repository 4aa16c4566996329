"""The training loop: learns, and goes on after an interruption as if there had been none."""

import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jkv.errors import UserError
from jkv.models.predictor import importance, random_predictor
from jkv.predictor_training import fit
from jkv.predictor_training.fit import Recipe
from jkv.predictor_training.targets import Target
from jkv.predictor_training.training import LOG, Data, train, validate

D = 12


def recipe(**words) -> Recipe:
    usual = {"loss": "mse", "target": Target("linear", 10.0), "learning_rate": 1e-2, "epochs": 3, "batch": 4,
             "micro_batch": 2, "seed": 5}  # fmt: skip
    return Recipe(**{**usual, **words})


def data(traces: int = 14, noise: float = 0.0) -> Data:
    """Labels that one direction of the hidden state gives away."""
    rng = np.random.default_rng(0)
    direction = rng.normal(size=D)
    rows = []
    for i in range(traces):
        hidden = rng.normal(size=(20 + 3 * i, D)).astype(np.float32)
        label = np.logaddexp(0, hidden @ direction) + noise * rng.normal(size=len(hidden))
        rows.append((hidden, label.astype(np.float32) / 4))
    n = traces - 3
    return Data(range(n), range(n, traces), rows.__getitem__)


def same(one, other) -> bool:
    return all(
        np.array_equal(np.asarray(a).view(np.uint8), np.asarray(b).view(np.uint8))
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["mse", "ranking"])
def test_it_learns_what_the_hidden_states_say(tmp_path, loss):
    initial = random_predictor(D)
    words = recipe(loss=loss, epochs=25)
    before = validate(words, initial, data())
    predictor, log = train(words, data(), initial, tmp_path)
    after = validate(words, predictor, data())
    assert before["spearman"] < 0.5
    assert after["spearman"] > 0.9
    assert after["top30"] > 0.8
    steps = [line for line in log if "step" in line]
    epochs = [line for line in log if "spearman" in line]
    assert [line["step"] for line in steps] == list(range(1, 3 * 25 + 1))
    assert [line["epoch"] for line in epochs] == list(range(1, 26))
    assert epochs[-1] == {"epoch": 25, **after}
    assert steps[-1]["loss"] < 0.5 * steps[0]["loss"]
    assert [json.loads(text) for text in (tmp_path / LOG).read_text().splitlines()] == log


class Killed(Exception):
    pass


@pytest.mark.parametrize("save_every", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_bit_for_bit(tmp_path, save_every):
    initial, words = random_predictor(D), recipe(loss="ranking")
    whole, log = train(words, data(), initial, tmp_path / "whole", save_every=save_every)
    seen: list[int] = []

    def killer(at: int):
        def on_step(lines, done, total):
            seen.append(done)
            assert total == 9
            if done == at:
                raise Killed

        return on_step

    def read(name: str) -> str:
        return (tmp_path / name / LOG).read_text()

    for at in (1, 2, 6, 8):
        with pytest.raises(Killed):
            train(words, data(), initial, tmp_path / "torn", save_every=save_every, on_step=killer(at))
        with open(tmp_path / "torn" / LOG, "a") as file:
            file.write('{"step": ')  # a line that was never finished
    resumed, again = train(words, data(), initial, tmp_path / "torn", save_every=save_every, on_step=killer(0))
    assert same(whole, resumed)
    assert again == log
    assert read("torn") == read("whole")
    if save_every == 1:  # no step was trained twice
        assert seen == list(range(1, 10))
    finished, third = train(words, data(), initial, tmp_path / "torn", on_step=killer(0))
    assert same(whole, finished)
    assert third == log


def test_a_log_of_something_else_is_refused(tmp_path):
    train(recipe(), data(), random_predictor(D), tmp_path)
    (tmp_path / LOG).write_text("")
    with pytest.raises(UserError, match="is not the log of these checkpoints"):
        train(recipe(), data(), random_predictor(D), tmp_path)


AGAIN = """
import pathlib, sys
from jkv.terminal import command as cli
from jkv.predictor_training.training import train
from jkv.models.predictor import random_predictor
from tests.predictor_training.test_training import D, data, recipe
cli.run(lambda _: train(recipe(), data(), random_predictor(D), pathlib.Path(sys.argv[1])))
"""


@pytest.mark.slow
def test_a_damaged_checkpoint_is_one_line(tmp_path):
    """In a process of its own: Orbax's threads complain long after their exception was caught."""
    train(recipe(), data(), random_predictor(D), tmp_path)
    for file in (tmp_path / "checkpoints").rglob("*"):
        if file.is_file() and "manifest" in file.name:
            file.write_bytes(b"junk")
    words = [sys.executable, "-c", AGAIN, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=pathlib.Path(__file__).parents[2], timeout=300)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
    assert "the checkpoint can't be read" in line


@pytest.mark.slow
def test_micro_batches_add_up_to_the_batch(tmp_path):
    initial = random_predictor(D)
    runs = [train(recipe(micro_batch=n, batch=6), data(), initial, tmp_path / str(n))[0] for n in (1, 4, 6)]
    for other in runs[1:]:
        for a, b in zip(runs[0], other, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)


def test_the_schedule_warms_up_and_ends_near_zero():
    """AdamW of a constant gradient moves each weight by about the learning rate."""
    words, steps = recipe(weight_decay=0.0, learning_rate=1e-3), 40
    transform = fit.optimizer(words, steps)
    weights = {"w": jnp.zeros((1,))}
    moments, moved = transform.init(weights), []
    for _ in range(steps):
        with jax.numpy_dtype_promotion("standard"):
            change, moments = transform.update({"w": jnp.ones((1,))}, moments, weights)
        moved.append(-float(change["w"][0]))
    assert moved[0] == pytest.approx(1e-3 / 4, rel=1e-3)  # a tenth of 40 steps is 4
    assert max(moved) == pytest.approx(moved[3], rel=1e-3) == pytest.approx(1e-3, rel=1e-3)
    assert 0 <= moved[-1] < 1e-4
    assert isinstance(transform, optax.GradientTransformation)


def test_padding_and_other_traces_do_not_change_a_trace():
    rows = [data().read(i) for i in range(4)]
    predictor = random_predictor(D)
    for part in fit.micro_batches(rows, 2):
        predicted = np.asarray(importance(predictor, part.hidden))
        for row in range(2):
            n = int(part.valid[row].sum())
            (hidden, label) = next(r for r in rows if len(r[1]) == n)
            np.testing.assert_array_equal(part.hidden[row, :n], hidden)
            np.testing.assert_array_equal(part.target[row, :n], label)
            alone = np.asarray(importance(predictor, jnp.asarray(hidden)[None]))[0]
            np.testing.assert_allclose(predicted[row, :n], alone, rtol=1e-5)


def test_every_trace_is_seen_once_an_epoch():
    words = recipe(batch=5)
    for epoch in range(3):
        batches = words.batches(range(12), epoch)
        assert [len(b) for b in batches] == [5, 5, 2]
        assert sorted(i for batch in batches for i in batch) == list(range(12))
    assert words.batches(range(12), 0) != words.batches(range(12), 1)
    assert words.steps_per_epoch(12) == 3


@pytest.mark.slow
def test_other_widths_train_too(tmp_path: pathlib.Path):
    """The published predictors are 8192 and 2048 wide, whatever D is."""
    predictor, _ = train(recipe(epochs=1), data(), random_predictor(D, wide=40, narrow=6), tmp_path)
    assert [x.shape for x in predictor] == [(D, 40), (40, 6), (6, 1)]
