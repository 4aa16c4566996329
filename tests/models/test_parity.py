"""The Decoder against transformers: same checkpoint, same logits at every position; and back, bit for bit."""

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch", reason="transformers needs it to be the other side of parity")

import transformers
from safetensors import safe_open

from converters.hf import read_hf, write_hf
from jkv.models import Decoder
from tests.support.hf_models import CASES, Case, hf_logits

ORIGINAL, LENGTH = 32, 100  # trained context of the rope-scaled cases, and how far these tests go beyond it


def tensors(directory) -> dict[str, np.ndarray]:
    """Every tensor of every safetensors file, as bits."""
    out = {}
    for file in directory.glob("*.safetensors"):
        with safe_open(file, framework="np") as handle:
            for name in handle.keys():  # noqa: SIM118 (not a mapping)
                data = handle.get_tensor(name)
                assert name not in out
                out[name] = data.view(f"uint{8 * data.dtype.itemsize}")
    return out


def jkv_logits(model: Decoder, tokens: np.ndarray, positions: np.ndarray) -> np.ndarray:
    hidden, _ = model(jnp.asarray(tokens, jnp.int32), jnp.asarray(positions, jnp.int32))
    return np.asarray(model.logits(hidden))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_logits_and_back(case: Case, tmp_path):
    theirs = case.save(tmp_path / "hf")
    ours = read_hf(tmp_path / "hf")
    assert case.n_heads * case.head_dim != case.d_model  # square shapes would hide a transposed weight
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 97, (2, LENGTH))
    for offset in (0, 3 * ORIGINAL):
        positions = np.broadcast_to(np.arange(LENGTH) + offset, tokens.shape).copy()
        expected = hf_logits(theirs, tokens, positions)
        assert expected.std() > 0.5  # logits near zero would agree whatever the model did
        np.testing.assert_allclose(jkv_logits(ours, tokens, positions), expected, rtol=0, atol=1e-4)

    write_hf(ours, tmp_path / "back")
    before, after = tensors(tmp_path / "hf"), tensors(tmp_path / "back")
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back", attn_implementation="eager")
    np.testing.assert_array_equal(hf_logits(again, tokens, positions), expected)


def test_scaling_matters_in_these_tests(tmp_path):
    # Were the rope-scaled cases insensitive to scaling, their parity would prove nothing about it.
    case = CASES[0]
    theirs = case.save(tmp_path / "scaled")
    plain = Case("llama-plain-", "llama", 8, 2, {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}})
    other = plain.model()
    other.load_state_dict(theirs.state_dict())
    tokens, positions = np.arange(LENGTH)[None] % 97, np.arange(LENGTH)[None]
    gap = np.abs(hf_logits(theirs, tokens, positions) - hf_logits(other, tokens, positions))
    assert gap.max() > 0.1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_and_returns(dtype, tmp_path):
    case = CASES[3]
    case.save(tmp_path / "hf", dtype)
    model = read_hf(tmp_path / "hf")
    assert model.embed.dtype == jnp.dtype(dtype)
    write_hf(model, tmp_path / "back")
    before, after = tensors(tmp_path / "hf"), tensors(tmp_path / "back")
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) and before[name].dtype == np.uint16 for name in before)


def test_bfloat16_logits_are_near_float32_ones(tmp_path):
    case = CASES[0]
    case.save(tmp_path / "hf", "bfloat16")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype="float32")
    tokens, positions = np.arange(40)[None] % 97, np.arange(40)[None]
    wide = hf_logits(theirs, tokens, positions)
    np.testing.assert_allclose(jkv_logits(read_hf(tmp_path / "hf", "float32"), tokens, positions), wide, atol=1e-4)
    narrow = jkv_logits(read_hf(tmp_path / "hf"), tokens, positions)
    assert np.abs(narrow - wide).max() < 0.05 * np.abs(wide).max()


def test_sharded_by_transformers(tmp_path):
    case = CASES[0]
    case.save(tmp_path / "one")
    case.save(tmp_path / "many", shard="60KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    write_hf(read_hf(tmp_path / "many"), tmp_path / "back", max_shard_bytes=50_000)
    files = sorted((tmp_path / "back").glob("*.safetensors"))
    assert len(files) > 3
    assert all(file.stat().st_size < 52_000 for file in files)
    one, back = tensors(tmp_path / "one"), tensors(tmp_path / "back")
    assert one.keys() == back.keys()
    assert all(np.array_equal(one[name], back[name]) for name in one)
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back")
