"""int8 weights: what is quantised, how far logits move (with an int8 KV buffer, too), and that decoding reads int8 and
nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from qwix import QArray, dequantize

from converters.fill import leaves
from converters.hf import write_hf
from jkv.engine.engine import Engine
from jkv.engine.events import Request
from jkv.load import load
from jkv.models import Decoder
from jkv.models.attention import Attend, CausalAttention
from jkv.models.config import ModelConfig
from jkv.models.quantized import contract, embed_tokens, quantize_decoder, quantize_weight
from jkv.ops.buffer import quantize
from jkv.policies import Retention, Window
from tests.converters.conftest import random_decoder
from tests.support.requests import complete, prompts

LLAMA = ModelConfig("llama", 96, 64, 160, 3, 8, 2, 16, 1e4)
QWEN = ModelConfig("qwen2", 96, 64, 160, 3, 12, 4, 16, 1e4, qkv_bias=True, tied_head=True)


def model_of(config: ModelConfig, dtype="float32") -> Decoder:
    """Weights of the sizes that training leaves: each contraction keeps the scale of its input."""
    model = random_decoder(config, dtype)
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        value = variable.get_value()
        if path[-1] == "kernel" or path == ("head",):
            fan_in = value.shape[0] * (value.shape[1] if "o" in path else 1)
            variable.set_value(value * jnp.asarray(fan_in**-0.5, value.dtype))
    return model


@dataclasses.dataclass(frozen=True)
class RoundedAttention:
    """Every token, its own included, is met as an int8 buffer stores it."""

    def __call__(self, q, k, v, kv, x):
        stored = (jnp.swapaxes(quantize(jnp.swapaxes(y, 1, 2), y.dtype).dense(), 1, 2) for y in (k, v))
        return CausalAttention()(q, *stored, kv, x)


def logits(model: Decoder, attend: Attend | None = None) -> np.ndarray:
    tokens = jnp.asarray([prompts(48, vocabulary=96)[0]])
    run = jax.jit(lambda model, tokens: model.logits(model(tokens, jnp.arange(48)[None], attend)[0]))
    return np.asarray(run(model, tokens), np.float64)


@pytest.mark.slow
@pytest.mark.parametrize("config", [LLAMA, QWEN], ids=["llama", "qwen2"])
def test_how_far_logits_move(config):
    """Root mean squares in units of the logits' own: int8 moves them little more than bfloat16 does."""
    exact = logits(model_of(config))
    spread = exact.std()
    table = {}
    for name, dtype, weights, kv in (
        ("bfloat16", "bfloat16", False, False), ("int8", "float32", True, False), ("both", "bfloat16", True, False),
        ("kv", "float32", False, True), ("kv, bfloat16", "bfloat16", False, True),
        ("all", "float32", True, True), ("all, bfloat16", "bfloat16", True, True),
    ):  # fmt: skip
        model = model_of(config, dtype)
        if weights:
            quantize_decoder(model)
        moved = logits(model, RoundedAttention() if kv else None) - exact
        agree = np.mean((exact + moved).argmax(-1) == exact.argmax(-1))
        table[name] = (np.sqrt((moved**2).mean()) / spread, np.abs(moved).max() / spread, agree)
    print(config.architecture, {name: [round(float(x), 4) for x in row] for name, row in table.items()})
    assert table["int8"][0] < 0.03
    assert table["both"][0] < 0.04
    assert 0 < table["int8"][0] < 4 * table["bfloat16"][0]
    # A key's or value's scale is its own: the buffer moves logits less than weights do.
    assert 0 < table["kv"][0] < table["int8"][0]
    assert table["all, bfloat16"][0] < 0.04


def test_what_is_quantised():
    model = model_of(QWEN, "bfloat16")
    before = leaves(model)
    quantize_decoder(model)
    assert model.dtype == jnp.bfloat16
    for path, leaf in leaves(model).items():
        matrix = path == "embed" or path.endswith("kernel")
        assert isinstance(leaf, QArray) == matrix, path
        if not matrix:
            np.testing.assert_array_equal(leaf, before[path])
            continue
        exact = np.asarray(before[path], np.float32)
        assert leaf.qvalue.dtype == jnp.int8
        assert leaf.scale.dtype == jnp.float32
        # Nearest: at most half a step off.
        error = np.abs(np.asarray(dequantize(leaf)) - exact)
        assert (error <= 0.5001 * np.asarray(leaf.scale)).all(), path


@pytest.mark.parametrize(
    ("path", "spec", "shape", "scales"),
    [
        ("layers.0.attention.q.kernel", "BTD,DNH->BTNH", (64, 8, 16), (1, 8, 16)),
        ("layers.0.attention.o.kernel", "BTNH,NHD->BTD", (8, 16, 64), (1, 1, 64)),
        ("layers.0.mlp.down.kernel", "BTF,FD->BTD", (160, 64), (1, 64)),
        ("head", "BTD,DV->BTV", (64, 96), (1, 96)),
        ("embed", "BTD,VD->BTV", (96, 64), (96, 1)),
    ],
)
def test_contractions_are_those_of_the_dequantised_weight(path, spec, shape, scales):
    rng = np.random.default_rng(0)
    weight = quantize_weight(path, jnp.asarray(rng.normal(size=shape), jnp.float32))
    assert isinstance(weight, QArray)
    assert weight.scale.shape == scales
    sizes = dict(zip(spec.split(",")[1].split("->")[0], shape, strict=True)) | {"B": 2, "T": 3}
    x = jnp.asarray(rng.normal(size=[sizes[letter] for letter in spec.split(",")[0]]), jnp.float32)
    np.testing.assert_allclose(contract(spec, x, weight), jnp.einsum(spec, x, dequantize(weight)), atol=2e-5)
    narrow = contract(spec, x.astype(jnp.bfloat16), weight)
    assert narrow.dtype == jnp.bfloat16
    assert contract(spec, x, weight, preferred_element_type=jnp.float32).dtype == jnp.float32


def test_rows_of_an_embedding():
    table = quantize_weight("embed", jnp.asarray(np.random.default_rng(0).normal(size=(96, 64)), jnp.float32))
    tokens = jnp.asarray([[3, 95], [0, 3]])
    found = embed_tokens(table, tokens, jnp.float32)
    np.testing.assert_array_equal(found, np.asarray(dequantize(table))[np.asarray(tokens)])


def test_decoding_is_that_of_the_dequantised_model(tmp_path):
    """Loaded as int8, in one compilation, with evictions; the program's weights are int8."""
    write_hf(model_of(LLAMA), tmp_path)
    model = load(tmp_path, "float32", weights="int8").model
    plain = load(tmp_path, "float32").model
    for path, variable in nnx.to_flat_state(nnx.state(plain, nnx.Param)):
        weight = quantize_weight(".".join(map(str, path)), variable.get_value())
        variable.set_value(dequantize(weight) if isinstance(weight, QArray) else weight)
    todo = [Request(f"r{i}", prompt, 50) for i, prompt in enumerate(prompts(5, 20, 9, vocabulary=96))]
    tokens = []
    for each in (model, plain):
        engine = Engine(each, policy=Window(), rule=Retention(32, 24, 4), batch_size=2, eos_ids=())
        done, _ = complete(engine, todo)
        tokens.append({id: completion.token_ids for id, completion in done.items()})
        assert sum(completion.evictions for completion in done.values()) > 3
        assert engine.traces["decode"] == 1
        matrices = sum(leaf.dtype == jnp.int8 for leaf in jax.tree.leaves(engine.weights))
        assert matrices == (2 + 7 * LLAMA.n_layers if each is model else 0)
    assert tokens[0] == tokens[1]
    assert len({token for row in tokens[0].values() for token in row}) > 10
