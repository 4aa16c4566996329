"""Rows laid end to end train like rows apart."""

import dataclasses
import itertools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jkv.demo import architectures, batches, task, training
from jkv.demo.tokenizer import vocabulary
from jkv.models import Decoder

VOCABULARY = vocabulary()
WORDS = list(VOCABULARY)


def _batch(layout: batches.Layout) -> tuple[list[task.Problem], batches.Batch]:
    drawn = task.generate(0, len(layout.variables), variables=layout.variables)
    return drawn, batches.encode(drawn, layout, VOCABULARY)


@pytest.mark.parametrize("filler", [True, False])
@pytest.mark.parametrize("size", [2, 3, 4, 5, 6])
def test_longest(size: int, filler: bool):
    drawn = task.generate(1, 300, variables=(size,))
    lengths = [len(f"{p.prompt} {p.solution(filler=filler)}".split()) for p in drawn]
    assert max(lengths) == batches.longest(size, filler=filler)


@pytest.mark.parametrize("filler", [True, False])
def test_encode(filler: bool):
    layout = batches.Layout(2, (2, 5), filler)
    drawn, batch = _batch(layout)
    start = 0
    for problem, size in zip(drawn, layout.variables, strict=True):
        length = batches.longest(size, filler=filler) - 1
        row = slice(start, start + length)
        start += length
        text = f"{problem.prompt} {problem.solution(filler=filler)}".split()
        end, prompt = len(text) - 1, len(problem.prompt.split())
        tokens, targets = ([WORDS[i] for i in np.asarray(x)[0, row]] for x in (batch.tokens, batch.targets))
        assert tokens[:end] == text[:-1]
        assert targets[:end] == text[1:]
        assert set(targets[end:]) <= {"<pad>"}
        assert batch.positions[0, row].tolist() == list(range(length))
        weights = np.asarray(batch.weights[0, row])
        assert not weights[: prompt - 1].any()
        assert weights[prompt - 1 : end].all()
        assert not weights[end:].any()
        light = int(np.sum(np.asarray(weights) == np.float32(batches.FILLER_WEIGHT)))
        assert light == (16 * size if filler else 0)
    assert start == batch.tokens.size


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_rows_attend_like_rows_apart(arch: Literal["llama", "qwen2"]):
    layout = batches.Layout(2, (2, 3), filler=True)
    _, batch = _batch(layout)
    model = Decoder(architectures.model_config(arch), rngs=nnx.Rngs(0))
    together, _ = model(batch.tokens, batch.positions, batches.RowsAttention(layout))
    start = 0
    for length in np.repeat(layout.lengths, layout.rows).tolist():
        row = slice(start, start + length)
        apart, _ = model(batch.tokens[:, row], batch.positions[:, row])
        np.testing.assert_allclose(together[:, row], apart, rtol=1e-4, atol=1e-5)
        start += length


def test_problems_right():
    """A problem counts when every word but filler is the likeliest: here by a model of which each is known."""
    layout = batches.Layout(2, (2, 3), filler=True)
    _, batch = _batch(layout)
    model = Decoder(architectures.model_config("llama"), rngs=nnx.Rngs(0))
    graph, params = nnx.split(model)
    _, likeliest = training.cross_entropy(graph, params, batch, layout)
    rows = np.cumsum([0, *np.repeat(layout.lengths, layout.rows)])
    guesses = np.where(np.asarray(likeliest), np.asarray(batch.targets), -1)

    def fraction(right_rows: int) -> float:
        # The first rows are made right: their targets become what the model says, and filler counts nothing.
        weights = np.array(batch.weights)
        for start, stop in itertools.pairwise(rows[: right_rows + 1]):
            weights[0, start:stop] *= guesses[0, start:stop] >= 0
        changed = dataclasses.replace(batch, weights=jnp.asarray(weights))
        return float(training.problems_right(graph, params, changed, layout))

    assert [fraction(n) for n in range(5)] == [0, 0.25, 0.5, 0.75, 1]


def test_layouts_of_the_curriculum():
    curriculum = training.Curriculum(short=2, plain=3, full=4, tokens=6000)
    layouts = [curriculum.layout(step) for step in range(curriculum.steps)]
    assert [layout.sizes[-1] for layout in layouts] == [3] * 2 + [6] * 7
    assert [layout.filler for layout in layouts] == [False] * 5 + [True] * 4
    for layout in layouts:
        assert abs(layout.rows * sum(layout.lengths) - 6000) <= sum(layout.lengths) / 2
    assert batches.Layout.of_tokens(1, (2, 3), filler=True).rows == 1


def test_weight_decay_is_for_matrices():
    model = Decoder(architectures.model_config("qwen2"), rngs=nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    flags = jax.tree_util.tree_leaves_with_path(training.is_matrix(params))
    decayed = {jax.tree_util.keystr(path) for path, flag in flags if flag}
    assert all("kernel" in name or "embed" in name for name in decayed)
    # Seven projections a layer, and the embedding.
    assert len(decayed) == 7 * 3 + 1
