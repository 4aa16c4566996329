"""The shipped checkpoints: small, bfloat16, read by transformers and by jkv alike, and able to do the task."""

import json
import pathlib
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import jkv.demo
from converters.hf import read_hf
from jkv.demo import architectures, task
from jkv.demo.tokenizer import vocabulary
from jkv.models.predictor import hidden_layer, importance, load_predictor
from jkv.predictor_training.labels import Labeller
from jkv.predictor_training.metrics import score_traces
from jkv.predictor_training.traces import Trace

CHECKPOINTS = pathlib.Path(jkv.demo.__file__).parent / "checkpoints"
MODELS: dict[str, Literal["llama", "qwen2"]] = {"demo-llama": "llama", "demo-qwen": "qwen2"}

pytestmark = pytest.mark.parametrize("name", list(MODELS))


def test_files(name: str):
    directory = CHECKPOINTS / name
    assert sum(path.stat().st_size for path in directory.iterdir()) < 1_500_000
    with safetensors.safe_open(directory / "model.safetensors", "np") as stored:
        assert {stored.get_slice(key).get_dtype() for key in stored.keys()} == {"BF16"}  # noqa: SIM118
    config = json.loads((directory / "config.json").read_text())
    assert config["model_type"] == MODELS[name]
    assert read_hf(directory).config == architectures.model_config(MODELS[name])


def test_tokenizer_is_this_tokenizer(name: str):
    loaded = AutoTokenizer.from_pretrained(CHECKPOINTS / name)
    (problem,) = task.problems(1)
    assert loaded.encode(problem.prompt) == [vocabulary()[word] for word in problem.prompt.split()]
    assert loaded.apply_chat_template(
        [{"role": "user", "content": problem.question}], add_generation_prompt=True, tokenize=False
    ) == problem.prompt  # fmt: skip


def test_same_scores_as_transformers(name: str):
    words = vocabulary()
    (problem,) = task.problems(1, seed=8)
    ids = [[words[word] for word in f"{problem.prompt} {problem.solution()}".split()]]
    theirs = AutoModelForCausalLM.from_pretrained(CHECKPOINTS / name, dtype=torch.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()
    ours = read_hf(CHECKPOINTS / name, "float32")
    hidden, _ = ours(jnp.asarray(ids), jnp.arange(len(ids[0]))[None])
    np.testing.assert_allclose(ours.logits(hidden), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_generate_in_transformers(name: str):
    """Nine of ten problems at the least (README.md has the measured accuracy): a broken checkpoint gets none."""
    loaded = AutoTokenizer.from_pretrained(CHECKPOINTS / name)
    theirs: Any = AutoModelForCausalLM.from_pretrained(CHECKPOINTS / name, dtype=torch.float32)
    drawn = task.problems(10, seed=9)
    encoded = loaded([p.prompt for p in drawn], return_tensors="pt", padding=True, padding_side="left")
    produced = theirs.generate(
        encoded["input_ids"], attention_mask=encoded["attention_mask"], max_new_tokens=300, do_sample=False,
        pad_token_id=loaded.pad_token_id,
    )  # fmt: skip
    texts = loaded.batch_decode(produced, skip_special_tokens=True)
    assert sum(p.grade(text) for p, text in zip(drawn, texts, strict=True)) >= 9


def test_its_predictor_finds_what_the_answer_looks_at(name: str):
    """Overlap with the true top 30 % of thinking tokens on model solutions: a broken predictor gets 0.3. What it is on
    the model's own traces is in docs/predictor.md."""
    words, model = vocabulary(), read_hf(CHECKPOINTS / name, "float32")
    predictor = load_predictor(CHECKPOINTS / name, model.config.d_model)
    assert hidden_layer(CHECKPOINTS / name, model.config.n_layers) is None
    labeller, pairs = Labeller(model, horizon=16, layer=None), []
    for problem in task.problems(12, seed=8):
        prompt, rest = (tuple(words[w] for w in text.split()) for text in (problem.prompt, problem.solution()))
        tokens = prompt + rest[:-1]
        start, end = tokens.index(words["<think>"]), tokens.index(words["</think>"])
        trace = Trace(problem.id, 0, tokens, len(prompt), start, end)
        (labels,) = labeller([trace])
        predicted = importance(predictor, jnp.asarray(labels.hidden)[None])[0]
        pairs.append((np.asarray(predicted)[trace.thinking], labels.answer[trace.thinking]))
    assert score_traces(pairs)["top30"] > 0.55
