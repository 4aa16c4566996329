"""``--mesh auto``: what is chosen for whom, and what ``--mesh`` refuses."""

import dataclasses

import jax
import pytest
from flax import nnx

from converters.config import from_hf
from converters.files import read_json
from jkv.distributed.choose_mesh import best_sizes, mesh_text, settle_mesh, weight_count
from jkv.engine.placement import OneDevice, OnMesh, placement_of
from jkv.errors import UserError
from jkv.files.shipped import MODELS
from jkv.models import Decoder
from jkv.models.config import ModelConfig
from jkv.planning.chips import CHIPS

SMALL = ModelConfig("llama", 96, 40, 72, 2, 8, 2, 12, 1e4)


def shipped(name: str) -> ModelConfig:
    return from_hf(read_json(MODELS / f"{name}.json"))


@pytest.mark.parametrize(
    ("model", "devices", "rows", "slots", "chip", "expected"),
    [
        ("r1-llama-8b", 8, 32, 5000, "v5e", (1, 8)),
        ("r1-qwen-7b", 8, 32, 2500, "v5e", (2, 4)),  # 4 KV heads
        ("r1-qwen-7b", 8, 31, 2500, "v5e", (1, 4)),  # rows that no data axis divides: four chips stay idle
        ("r1-qwen-1.5b", 8, 32, 2500, "v5e", (4, 2)),
        ("r1-llama-70b", 8, 32, 5000, "v5p", (1, 8)),
    ],
)
def test_published_models(model, devices, rows, slots, chip, expected):
    config = shipped(model)
    weights, buffer = 2 * weight_count(config), config.kv_bytes(rows, slots, 2)
    sizes = best_sizes(config, devices, rows=rows, weights=weights, buffer=buffer, usable=CHIPS[chip].usable)
    assert (sizes["data"], sizes["model"]) == expected


def test_a_small_model_is_spread_by_rows():
    weights = 4 * weight_count(SMALL)
    buffer = lambda rows: SMALL.kv_bytes(rows, 32, 4)
    choose = lambda rows, usable=None: best_sizes(
        SMALL, 8, rows=rows, weights=weights, buffer=buffer(rows), usable=usable
    )
    assert choose(16) == {"data": 8, "model": 1}
    assert choose(6) == {"data": 6, "model": 1}
    assert choose(1) == {"data": 1, "model": 1}
    # What is too large for a device is shared by heads all the same.
    assert choose(16, weight_count(SMALL) * 3) == {"data": 4, "model": 2}


def test_words():
    assert settle_mesh(None, SMALL, rows=4, slots=32, dtype="float32") is None
    mesh = settle_mesh("data=1,model=1", SMALL, rows=4, slots=32, dtype="float32")
    assert mesh is not None
    assert mesh_text(mesh) == "data=1,model=1"
    assert mesh_text(settle_mesh("auto", SMALL, rows=4, slots=32, dtype="float32", devices=jax.devices()[:1])) == (
        "data=1,model=1"
    )
    assert mesh_text(None) is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("data=2", "data=2 asks for 2 devices, there are 1; let data x model be at most 1"),
        ("model=4", "model=4 can't share the model's 2 KV heads evenly"),
        ("data=3", "data=3 can't share 4 rows evenly"),
        ("eight", "'eight' is not a mesh"),
    ],
)
def test_refusals(words, message):
    with pytest.raises(UserError) as error:
        settle_mesh(words, SMALL, rows=4, slots=32, dtype="float32", devices=jax.devices()[:1])
    assert str(error.value).startswith("--mesh: ")
    assert message in str(error.value)


def test_one_tpu_is_a_mesh_so_that_its_compiler_chooses_layouts(monkeypatch):
    assert isinstance(placement_of(None, SMALL), OneDevice)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    on_tpu = placement_of(None, SMALL)
    assert isinstance(on_tpu, OnMesh)
    assert dict(on_tpu.mesh.shape) == {"data": 1, "model": 1}


@pytest.mark.parametrize("tied", [False, True])
def test_weights_are_counted_as_the_model_has_them(tied):
    config = dataclasses.replace(SMALL, tied_head=tied)
    weights = nnx.state(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))
    assert weight_count(config) == sum(leaf.size for leaf in jax.tree.leaves(weights) if leaf.ndim > 1)
