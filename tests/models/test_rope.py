"""Rotary frequencies against transformers' own functions, over many parameters."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch", reason="transformers computes its frequencies with it")

import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from converters.config import from_hf, to_hf
from jkv.models.config import Llama3Scaling
from jkv.models.rope import frequencies

SHAPE = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
# Bases and factors that checkpoints have, and stranger ones; floats of few digits keep failures readable.
theta = st.sampled_from([1e4, 5e5, 1e6, 150000.0, 100.0, 3e7])
factor = st.floats(1, 64).map(lambda x: round(x, 2))
original = st.sampled_from([16, 32, 2048, 4096, 8192, 32768])


def plain():
    return st.just({"rope_type": "default"})


def linear():
    return st.fixed_dictionaries({"rope_type": st.just("linear"), "factor": factor})


def llama3():
    parts = st.tuples(st.floats(0.25, 4), st.floats(0.5, 8))
    return st.builds(
        lambda f, bounds, o: {
            "rope_type": "llama3",
            "factor": f,
            "low_freq_factor": round(bounds[0], 2),
            "high_freq_factor": round(bounds[0] + bounds[1], 2),
            "original_max_position_embeddings": o,
        },
        factor,
        parts,
        original,
    )


def yarn():
    required = {"rope_type": st.just("yarn"), "factor": factor, "original_max_position_embeddings": original}
    optional = {
        "beta_fast": st.sampled_from([16, 32, 48.0, None]),
        "beta_slow": st.sampled_from([1, 2.5, None]),
        "attention_factor": st.sampled_from([0.8, 1.0, 1.2, None]),
        "mscale": st.sampled_from([0.707, 1.0]),
        "mscale_all_dim": st.sampled_from([0.5, 1.0]),
        "truncate": st.booleans(),
    }
    return st.fixed_dictionaries(required, optional=optional)


def theirs(data: dict) -> tuple[np.ndarray, float]:
    config = transformers.AutoConfig.for_model(**data)
    kind = config.rope_parameters["rope_type"]
    compute = ROPE_INIT_FUNCTIONS.get(kind, LlamaRotaryEmbedding.compute_default_rope_parameters)
    frequency, scale = compute(config, device="cpu")
    return frequency.numpy(), scale


def check(data: dict) -> None:
    expected, scale = theirs(data)
    config = from_hf(data)
    ours, our_scale = frequencies(config)
    assert ours.dtype == np.float32
    # llama3's blend subtracts two nearly equal float32 numbers and multiplies the difference by up to `factor`.
    blended = isinstance(config.rope_scaling, Llama3Scaling)
    np.testing.assert_allclose(ours, expected, rtol=3e-5 if blended else 1e-6, atol=0)
    assert math.isclose(our_scale, scale, rel_tol=1e-12)
    # Written back, transformers reads the same frequencies: to the bit, both being its own.
    again, scale_again = theirs(to_hf(config))
    np.testing.assert_array_equal(again, expected)
    assert math.isclose(scale_again, scale, rel_tol=1e-12)


@settings(deadline=None, max_examples=150)
@given(plain() | linear() | llama3() | yarn(), theta, st.sampled_from([8, 16, 64, 128]))
def test_new_form(rope, base, head_dim):
    check({**SHAPE, "model_type": "llama", "head_dim": head_dim, "rope_parameters": {**rope, "rope_theta": base}})


@settings(deadline=None, max_examples=150)
@given(
    st.one_of(st.none(), linear(), llama3(), yarn()),
    theta,
    st.sampled_from(["qwen2", "llama"]),
    st.sampled_from(["type", "rope_type"]),
)
def test_old_form(rope, base, model_type, key):
    scaling = rope and {(key if name == "rope_type" else name): value for name, value in rope.items()}
    more = {"num_key_value_heads": 2, "rope_theta": base, "rope_scaling": scaling}
    check({**SHAPE, "model_type": model_type, **more})


def test_published_llama3_scaling_to_float32_precision():
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    for factor, base, head_dim in [(8.0, 5e5, 128), (32.0, 5e5, 64)]:
        rope = {**scaling, "factor": factor, "original_max_position_embeddings": 8192, "rope_theta": base}
        data = {**SHAPE, "model_type": "llama", "head_dim": head_dim, "rope_parameters": rope}
        np.testing.assert_allclose(frequencies(from_hf(data))[0], theirs(data)[0], rtol=1e-6, atol=0)


def test_absent_fields_have_the_defaults_of_transformers():
    check({**SHAPE, "model_type": "llama"})
    check({**SHAPE, "model_type": "llama", "max_position_embeddings": 4096, "rope_theta": 5e5,
           "rope_scaling": {"rope_type": "yarn", "factor": 2.0}})  # fmt: skip
    check({**SHAPE, "model_type": "llama", "original_max_position_embeddings": 64,
           "rope_scaling": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 128}})  # fmt: skip
    check({**SHAPE, "model_type": "llama", "max_position_embeddings": 4096,
           "rope_scaling": {"type": "yarn", "factor": None, "original_max_position_embeddings": 128}})  # fmt: skip
