"""Reading and writing Hugging Face directories, and every way in which one can be wrong."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from converters.fill import fill, leaves
from converters.hf import read_hf, write_hf
from converters.tables import TABLES, rows
from jkv.errors import UserError
from jkv.models.config import ModelConfig
from tests.converters.conftest import TINY, random_decoder

Q = "model.layers.1.self_attn.q_proj.weight"


def line(directory, **arguments) -> str:
    with pytest.raises(UserError) as error:
        read_hf(directory, **arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def same(a, b) -> bool:
    x, y = leaves(a), leaves(b)
    assert x.keys() == y.keys()
    return all(x[p].dtype == y[p].dtype and np.array_equal(x[p], y[p]) for p in x)


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_round_trip(data, tmp_path_factory):
    architecture = data.draw(st.sampled_from(["llama", "qwen2", "qwen3"]))
    n_kv, group, bias = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1, 2, 4, 7])), data.draw(st.booleans())
    config = ModelConfig(
        architecture, vocab_size=data.draw(st.integers(3, 40)), d_model=n_kv * group * data.draw(st.integers(1, 5)),
        d_ff=data.draw(st.integers(1, 20)), n_layers=data.draw(st.integers(1, 3)), n_heads=n_kv * group,
        n_kv_heads=n_kv, head_dim=2 * data.draw(st.integers(1, 5)), rope_theta=1e4,
        qkv_bias=bias or architecture == "qwen2", o_bias=bias and architecture != "qwen2",
        mlp_bias=architecture == "llama" and data.draw(st.booleans()), qk_norm=architecture == "qwen3",
        tied_head=data.draw(st.booleans()), eos_ids=(0, 2),
    )  # fmt: skip
    directory = tmp_path_factory.mktemp("hf")
    model = random_decoder(config, data.draw(st.sampled_from(["float32", "bfloat16", "float16"])))
    write_hf(model, directory, max_shard_bytes=data.draw(st.sampled_from([1, 1000, 10**9])))
    read = read_hf(directory)
    assert read.config == config
    assert same(read, model)


@pytest.mark.parametrize("architecture", TABLES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_table_covers_every_leaf_once(architecture, bias, tied):
    kind = {"qk_norm": architecture == "qwen3", "mlp_bias": bias and architecture == "llama", "tied_head": tied}
    config = ModelConfig(
        architecture, 50, 16, 24, 2, 4, 2, 6, 1e4,
        qkv_bias=bias or architecture == "qwen2", o_bias=bias and architecture != "qwen2", **kind,
    )  # fmt: skip
    table, model = list(rows(config)), random_decoder(config)
    assert sorted(row.path for row in table) == sorted(leaves(model))
    assert len({row.name for row in table}) == len(table)
    for row in table:
        leaf = np.asarray(leaves(model)[row.path])
        stored = row.to_file(leaf, config)
        assert stored.shape == row.file_shape(config)
        np.testing.assert_array_equal(row.to_leaf(stored, config), leaf)


def test_dtype_argument(checkpoint):
    whole = leaves(read_hf(checkpoint.directory))
    narrow = leaves(read_hf(checkpoint.directory, "bfloat16"))
    assert all(narrow[path].dtype == jnp.bfloat16 for path in narrow)
    assert all(np.array_equal(narrow[path], np.asarray(whole[path]).astype(ml_dtypes.bfloat16)) for path in whole)
    write_hf(read_hf(checkpoint.directory), checkpoint.directory, jnp.bfloat16)
    assert leaves(read_hf(checkpoint.directory))["embed"].dtype == jnp.bfloat16
    assert line(checkpoint.directory, dtype="int8") == "dtype is int8, expected one of float32, bfloat16, float16"
    assert line(checkpoint.directory, dtype="wide") == "dtype is wide, expected one of float32, bfloat16, float16"


def test_shard_places_each_leaf(checkpoint):
    asked = []

    def shard(path, shape):
        asked.append((path, shape))
        return jax.sharding.SingleDeviceSharding(jax.devices()[0])

    model = read_hf(checkpoint.directory, shard=shard)
    assert dict(asked) == {path: leaf.shape for path, leaf in leaves(model).items()}


def test_missing_unknown_and_misshapen_are_all_listed(checkpoint):
    tensors = checkpoint.tensors()
    del tensors["lm_head.weight"]
    tensors["score.weight"] = np.zeros((2, 16), np.float32)
    tensors["model.norm.weight"] = np.zeros(17, np.float32)
    tensors[Q] = tensors[Q].astype(np.float64)
    checkpoint.save(tensors)
    assert line(checkpoint.directory) == (
        f"{checkpoint.directory}: tensors don't fit a llama of this config: 1 missing: lm_head.weight; "
        f"1 unknown: score.weight; 2 misshapen: {Q} is F64, expected F32, F16, BF16, "
        "model.norm.weight is [17], expected [16]"
    )


def test_long_lists_are_elided(checkpoint):
    checkpoint.configure(num_hidden_layers=30)
    message = line(checkpoint.directory)
    assert "252 missing: model.layers.2.input_layernorm.weight, " in message
    assert message.endswith("model.layers.3.input_layernorm.weight, ... (252 in all)")
    assert len(message) < 800


def test_bias_that_the_config_denies(checkpoint):
    checkpoint.save({**checkpoint.tensors(), "model.layers.0.self_attn.q_proj.bias": np.zeros(24, np.float32)})
    assert line(checkpoint.directory).endswith("1 unknown: model.layers.0.self_attn.q_proj.bias")


def test_a_layer_too_many_is_unknown(checkpoint):
    checkpoint.configure(num_hidden_layers=1)
    assert "9 unknown: model.layers.1.input_layernorm.weight" in line(checkpoint.directory)


def test_wrong_vocabulary_size(checkpoint):
    checkpoint.configure(vocab_size=49)
    assert line(checkpoint.directory) == (
        f"{checkpoint.directory}/config.json: wrong vocabulary size: "
        "vocab_size is 49, model.embed_tokens.weight has 50 rows"
    )


def test_inverse_frequencies_are_ignored(checkpoint):
    before = read_hf(checkpoint.directory)
    names = ("model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq")
    checkpoint.save({**checkpoint.tensors(), **{name: np.zeros(3) for name in names}})
    assert same(before, read_hf(checkpoint.directory))


def test_tied_head_must_equal_the_embedding(checkpoint):
    tensors = checkpoint.tensors()
    checkpoint.configure(tie_word_embeddings=True)
    assert line(checkpoint.directory) == (
        f"{checkpoint.weights}: tie_word_embeddings is true, "
        "but lm_head.weight differs from model.embed_tokens.weight; set tie_word_embeddings to false in config.json"
    )
    checkpoint.save({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].copy()})
    assert read_hf(checkpoint.directory).head is None


def test_tied_head_without_an_embedding(checkpoint):
    tensors = checkpoint.tensors()
    del tensors["model.embed_tokens.weight"]
    checkpoint.save(tensors)
    checkpoint.configure(tie_word_embeddings=True)
    assert "1 missing: model.embed_tokens.weight" in line(checkpoint.directory)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(checkpoint, dtype, value):
    tensors = {name: data.astype(dtype) for name, data in checkpoint.tensors().items()}
    tensors[Q][3, 4] = value
    checkpoint.save(tensors)
    assert line(checkpoint.directory) == f"{checkpoint.weights}: {Q} holds NaN or infinity; download it again"


def test_the_largest_finite_weights_are_read(checkpoint):
    tensors = checkpoint.tensors()
    tensors[Q][0, :3] = [np.finfo(np.float32).max, np.finfo(np.float32).tiny, -np.finfo(np.float32).max]
    checkpoint.save(tensors)
    read_hf(checkpoint.directory)
    assert line(checkpoint.directory, dtype="float16") == f"{checkpoint.weights}: {Q} holds values beyond float16"


def test_mixed_dtypes_need_a_dtype(checkpoint):
    tensors = checkpoint.tensors()
    tensors[Q] = tensors[Q].astype(np.float16)
    checkpoint.save(tensors)
    assert line(checkpoint.directory) == f"{checkpoint.directory}: the weights mix F16 and F32; ask for one dtype"
    assert leaves(read_hf(checkpoint.directory, "float32"))["embed"].dtype == jnp.float32


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickles_are_refused(checkpoint, name):
    checkpoint.weights.rename(checkpoint.directory / name)
    assert line(checkpoint.directory) == (
        f"{checkpoint.directory}: the weights are pickles ({name}); only safetensors are read, never pickles: "
        "save the model again with safe_serialization=True"
    )


def test_no_weights(checkpoint):
    checkpoint.weights.unlink()
    assert line(checkpoint.directory) == (
        f"{checkpoint.directory}: no weights: neither model.safetensors nor model.safetensors.index.json is there"
    )


class TestShards:
    """model.safetensors.index.json and the files that it names."""

    @pytest.fixture
    def sharded(self, tmp_path):
        write_hf(random_decoder(TINY), tmp_path, max_shard_bytes=3000)
        self.index = tmp_path / "model.safetensors.index.json"
        self.files = sorted(file.name for file in tmp_path.glob("*.safetensors"))
        assert len(self.files) > 3
        return tmp_path

    def remap(self, **changes):
        data = json.loads(self.index.read_text())
        data["weight_map"] = {**data["weight_map"], **changes}
        self.index.write_text(json.dumps(data))

    def test_reads(self, sharded):
        assert same(read_hf(sharded), random_decoder(TINY))

    def test_missing_shard(self, sharded):
        (sharded / self.files[1]).unlink()
        assert line(sharded) == f"{self.index}: names files that aren't there: {self.files[1]}; download them again"

    def test_tensor_not_where_the_index_says(self, sharded):
        self.remap(**{"lm_head.weight": self.files[0], "score.weight": self.files[0]})
        assert line(sharded) == (
            f"{self.index}: index and files disagree: "
            f"lm_head.weight isn't in {self.files[0]}, score.weight isn't in {self.files[0]}"
        )

    def test_tensor_in_two_shards(self, sharded):
        save_file({"lm_head.weight": np.zeros((50, 16), np.float32), "x": np.zeros(1)}, sharded / self.files[0])
        message = line(sharded)
        assert f"lm_head.weight is in {self.files[0]}, the index says {self.files[-1]}" in message
        assert f"x is in {self.files[0]}, the index says nothing" in message

    @pytest.mark.parametrize("file", ["../other.safetensors", "/etc/passwd", 7, "", "pytorch_model.bin"])
    def test_index_that_points_elsewhere(self, sharded, file):
        self.remap(**{"lm_head.weight": file})
        assert line(sharded) == (
            f"{self.index}: weight_map['lm_head.weight'] is {file!r}, expected the name of a .safetensors file"
        )

    @pytest.mark.parametrize("content", ["{}", '{"weight_map": {}}', '{"weight_map": []}'])
    def test_index_without_a_map(self, sharded, content):
        self.index.write_text(content)
        assert line(sharded) == f"{self.index}: weight_map is missing, empty or not an object"

    def test_writing_again_leaves_no_stale_weights(self, sharded):
        fresh = random_decoder(TINY, seed=1)
        write_hf(fresh, sharded)
        assert sorted(path.name for path in sharded.iterdir()) == ["config.json", "model.safetensors"]
        assert same(read_hf(sharded), fresh)
        write_hf(random_decoder(TINY), sharded, max_shard_bytes=3000)
        assert not (sharded / "model.safetensors").exists()
        assert same(read_hf(sharded), random_decoder(TINY))


def test_a_failing_write_leaves_the_old_checkpoint_whole(checkpoint, monkeypatch):
    before = read_hf(checkpoint.directory)
    monkeypatch.setattr("os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        write_hf(random_decoder(TINY, seed=1), checkpoint.directory)
    monkeypatch.undo()
    assert sorted(path.name for path in checkpoint.directory.iterdir()) == ["config.json", "model.safetensors"]
    assert same(read_hf(checkpoint.directory), before)


def test_fill_refuses_what_does_not_add_up():
    arrays = list(leaves(random_decoder(TINY)).items())
    with pytest.raises(ValueError, match="leaves never filled: "):
        fill(TINY, "float32", arrays[1:])
    with pytest.raises(ValueError, match="came twice"):
        fill(TINY, "float32", [*arrays, arrays[0]])
    with pytest.raises(ValueError, match="the model has"):
        fill(TINY, "bfloat16", arrays)
