"""Labels against transformers' eager attention, where the whole matrix is at hand."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from converters.hf import read_hf
from jkv.predictor_training import labels
from jkv.predictor_training.labels import Labeller, label, padded_length
from jkv.predictor_training.traces import Trace
from tests.support.tiny import FAMILY, Tiny, prompts

HORIZON = 9
LENGTHS = (60, 37, 50)


def traces() -> list[Trace]:
    """Random tokens, with a thought somewhere in each."""
    spans = ((7, 45), (2, 20), (11, 12 + 30))
    return [
        Trace(f"t{i}", 0, tokens, start + 1, start, end)
        for i, (tokens, (start, end)) in enumerate(zip(prompts(*LENGTHS), spans, strict=True))
    ]


def by_transformers(tiny: Tiny, trace: Trace, seed: int = 0) -> dict[str, np.ndarray]:
    """Both labels from the whole attention matrices, and the hidden states."""
    model = tiny.build(seed)
    inputs = []
    for block in model.model.layers:
        block.input_layernorm.register_forward_hook(lambda _m, _i, out: inputs.append(out[0].double().numpy()))
    with torch.no_grad():
        out = model.model(torch.tensor([trace.tokens]), output_attentions=True)
    matrix = np.mean([a[0].double().numpy() for a in out.attentions], axis=(0, 1))  # [T, S]: layers and heads have gone
    np.fill_diagonal(matrix, 0)
    n = len(trace.tokens)
    answer = matrix[trace.think_end + 1 :].mean(0)
    future = [matrix[max(trace.prompt_length, j + HORIZON + 1) :, j].sum() for j in range(n)]
    hidden = out.last_hidden_state[0].double().numpy()
    return {"answer": answer, "future": np.array(future), "hidden": hidden, "inputs": np.array(inputs)}


PLAIN = ("llama3-g4", "qwen2-g7")


@pytest.fixture(params=[pytest.param(t, marks=[] if t.name in PLAIN else pytest.mark.slow, id=t.name) for t in FAMILY])
def family(request, tmp_path) -> tuple[Tiny, Any]:
    request.param.save(tmp_path)
    return request.param, read_hf(tmp_path)


def test_labels_are_those_of_the_whole_attention_matrix(family):
    tiny, model = family
    labeller = Labeller(model, horizon=HORIZON, layer=None)
    for trace in traces():
        expected = by_transformers(tiny, trace)
        (got,) = labeller([trace])
        assert got.answer.dtype == got.future.dtype == np.float32
        np.testing.assert_allclose(got.answer, expected["answer"], atol=1e-6, rtol=0)
        np.testing.assert_allclose(got.future, expected["future"], atol=1e-6 * len(trace.tokens), rtol=0)
        np.testing.assert_allclose(got.hidden, expected["hidden"], atol=1e-4, rtol=0)
        # They are of the right size, and tokens differ: zeros would pass an absolute tolerance.
        assert expected["answer"].max() > 1e-2
        assert expected["answer"][trace.thinking].std() > 1e-4


@pytest.mark.parametrize("layer", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_hidden_states_of_a_layer_are_what_enters_its_attention(tmp_path, layer):
    tiny, trace = FAMILY[0], traces()[0]
    tiny.save(tmp_path)
    (got,) = Labeller(read_hf(tmp_path), horizon=HORIZON, layer=layer)([trace])
    expected = by_transformers(tiny, trace)
    np.testing.assert_allclose(got.hidden, expected["inputs"][layer], atol=1e-5, rtol=0)
    np.testing.assert_allclose(got.answer, expected["answer"], atol=1e-6, rtol=0)


def batch(padded: int) -> list[jax.Array]:
    tokens = np.zeros((3, padded), np.int32)
    for row, trace in enumerate(traces()):
        tokens[row, : trace.length] = trace.tokens
    books = [[getattr(t, name) for t in traces()] for name in ("think_end", "prompt_length", "length")]
    return [jnp.asarray(tokens), *(jnp.asarray(x, jnp.int32) for x in books)]


@pytest.mark.slow
def test_block_padding_and_neighbours_do_not_matter(tmp_path):
    FAMILY[2].save(tmp_path)
    model = read_hf(tmp_path)
    graph, weights = nnx.split(model)
    found = []
    for padded, block in ((60, 60), (60, 1), (64, 8), (128, 32)):
        run = jax.jit(functools.partial(label, graph, horizon=HORIZON, block=block))
        found.append(run(weights, *batch(padded)))
    alone = Labeller(model, horizon=HORIZON, layer=None)
    for row, trace in enumerate(traces()):
        (expected,) = alone([trace])
        for got in found:
            for name in ("answer", "future", "hidden"):
                mine = getattr(got, name)[row, : trace.length]
                np.testing.assert_allclose(mine, getattr(expected, name), atol=2e-5, rtol=0)


def test_memory_grows_with_the_sequence_and_not_with_its_square(tmp_path):
    """What the compiled program needs beside its arguments, at two lengths four times apart."""
    FAMILY[0].save(tmp_path)
    graph, weights = nnx.split(read_hf(tmp_path))

    def temporary(length: int) -> int:
        tokens, book = jax.ShapeDtypeStruct((1, length), jnp.int32), jax.ShapeDtypeStruct((1,), jnp.int32)
        run = jax.jit(functools.partial(label, graph, horizon=HORIZON, block=32))
        return run.lower(weights, tokens, book, book, book).compile().memory_analysis().temp_size_in_bytes

    assert temporary(4096) < 4.5 * temporary(1024)
    assert temporary(4096) < 4096 * 4096 * 4  # one head's matrix would be this


@pytest.mark.parametrize("length", [1, 100, 128, 129, 1000, 4097, 18_000, 131_072])
def test_padding_wastes_little_and_makes_few_programs(length):
    padded = padded_length(length)
    assert padded >= length
    assert padded % labels.BLOCK == 0
    assert padded - length < max(labels.BLOCK, length / 8 + 1)
    assert len({padded_length(n) for n in range(length, 2 * length, max(1, length // 50))}) <= 16


def test_a_trace_says_where_its_thought_is():
    trace = traces()[0]
    assert (trace.length, trace.thinking) == (60, slice(8, 45))
    assert dataclasses.replace(trace, think_start=8).thinking == slice(9, 45)
