"""Converted directories: bit-equal there and back, and what is refused."""

import json
import zlib

import jax.numpy as jnp
import numpy as np
import pytest

from converters.fill import leaves
from converters.hf import read_hf
from converters.orbax_io import is_converted, read_converted, write_converted
from jkv.errors import UserError
from tests.converters.conftest import TINY, random_decoder


@pytest.fixture
def converted(tmp_path):
    (tmp_path / "model").mkdir()
    write_converted(random_decoder(TINY), tmp_path / "model")
    return tmp_path / "model"


def line(directory) -> str:
    with pytest.raises(UserError) as error:
        read_converted(directory)
    assert "\n" not in str(error.value)
    return str(error.value)


def edit(path, **changes):
    data = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in data.items() if value is not ...}))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_round_trip(dtype, tmp_path):
    model = random_decoder(TINY, dtype)
    write_converted(model, tmp_path)
    assert is_converted(tmp_path)
    read = read_converted(tmp_path)
    assert read.config == TINY
    before, after = leaves(model), leaves(read)
    assert before.keys() == after.keys()
    assert all(after[p].dtype == dtype and np.array_equal(after[p], before[p]) for p in before)


def test_dtype_argument(converted):
    before, after = leaves(read_converted(converted)), leaves(read_converted(converted, "bfloat16"))
    assert all(np.array_equal(after[p], before[p].astype(jnp.bfloat16)) for p in before)
    with pytest.raises(UserError, match=r"^dtype is int8, expected one of float32, bfloat16, float16$"):
        read_converted(converted, "int8")


@pytest.mark.parametrize("damage", ["cut", "flip", "remove"])
def test_damaged_weights(converted, damage):
    file = max((f for f in (converted / "weights").rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    raw = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(raw[: len(raw) // 2])
    elif damage == "flip":
        raw[len(raw) // 2] ^= 1
        file.write_bytes(raw)
    else:
        file.unlink()
    name = file.relative_to(converted)
    state = "missing" if damage == "remove" else "damaged"
    assert line(converted) == f"{converted}: {name} is {state}; convert the checkpoint again"


def test_orbax_errors_become_one_line(converted):
    # A marker that vouches for what isn't a checkpoint: the checksums agree, Orbax doesn't.
    (converted / "weights" / "_METADATA").write_text("{}")
    files = json.loads((converted / "jkv.json").read_text())["files"]
    edit(converted / "jkv.json", files={**files, "weights/_METADATA": f"{zlib.crc32(b'{}'):08x}"})
    message = line(converted)
    assert message.startswith(f"{converted}/weights: the Orbax checkpoint can't be read (")
    assert message.endswith("); convert the checkpoint again")
    edit(converted / "jkv.json", files={})
    assert line(converted) == f"{converted}/jkv.json: files is {{}}, expected an object of checksums"


def test_config_of_another_model(converted):
    edit(converted / "config.json", intermediate_size=25, attention_bias=True)
    message = line(converted)
    assert "layers.0.attention.q.bias is missing" in message
    edit(converted / "config.json", attention_bias=False)
    message = line(converted)
    assert message.startswith(f"{converted}: weights don't fit config.json: layers.0.mlp.")
    assert "layers.0.mlp.down.kernel is [24, 16], expected [25, 16]" in message
    edit(converted / "config.json", intermediate_size=24, tie_word_embeddings=True)
    unknown = "weights don't fit config.json: head is unknown; convert the checkpoint again"
    assert line(converted) == f"{converted}: {unknown}"


def test_marker(converted):
    edit(converted / "jkv.json", format=2)
    assert line(converted) == f"{converted}/jkv.json: format is 2, expected an integer from 1 to 1"
    edit(converted / "jkv.json", format=1, dtype="int8")
    assert line(converted) == "dtype is int8, expected one of float32, bfloat16, float16"


def test_not_a_hugging_face_directory(converted):
    with pytest.raises(UserError, match="no weights: neither"):
        read_hf(converted)
