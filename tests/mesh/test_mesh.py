"""Rows on `data`, heads on `model`: on simulated devices a mesh decodes what one device does."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import AbstractMesh

from jkv.distributed.mesh import check_mesh, parse_mesh
from jkv.distributed.weights import weight_shardings
from jkv.errors import UserError
from jkv.models import Decoder
from jkv.models.config import ModelConfig
from jkv.models.letters import weight_letters
from tests.mesh.simulated import CASES
from tests.support.compilation import quick_environment

SAMPLED = "llama-dynts-sampled"
EIGHT = [case for case in CASES if case.partition("-")[0].endswith("8")]
MESHES_OF_EIGHT = ("data=1,model=1", "data=8,model=1", "data=1,model=8", "data=2,model=4", "data=4,model=2")


def _same_on(cases: tuple[str, ...], meshes: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "tests.mesh.simulated", "+".join(cases), *meshes]
    done = subprocess.run(command, env=quick_environment(8), capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert set(report) == set(cases)
    for case, found in report.items():
        assert found["differ"] == {}, case
        assert min(found["evictions"]) >= 2, case
        assert found["distinct"] > 20, case  # rows that repeat one token would agree by chance


def test_the_same_tokens_and_kept_positions():
    """Drawn, not greedy: the sums over a vocabulary that is spread, too."""
    _same_on((SAMPLED,), ("data=2,model=4",))


@pytest.mark.slow
@pytest.mark.parametrize("case", EIGHT)
def test_the_same_on_every_mesh(case):
    _same_on((case,), MESHES_OF_EIGHT)


# One of each kind: int8 weights, an int8 buffer, heads that keep sets of their own, one out for one in.
TELLING = ("llama-window-int8", "qwen-h2o-kv", "qwen-dynts-head", "llama-trimkv-head")


@pytest.mark.slow
def test_one_of_each_kind_the_same():
    _same_on(TELLING, ("data=2,model=2",))


def test_meshes_are_read():
    assert parse_mesh("data=2,model=4") == {"data": 2, "model": 4}
    assert parse_mesh("model=8", 8) == {"data": 1, "model": 8}


@pytest.mark.parametrize("text", ["", "8", "data=0", "data=2,data=2", "rows=2", "data=2;model=4", "model=x"])
def test_what_is_no_mesh_is_refused(text):
    with pytest.raises(UserError, match="is not a mesh"):
        parse_mesh(text)


def test_a_mesh_of_other_devices_is_refused():
    with pytest.raises(UserError, match="asks for 4 devices, there are 8"):
        parse_mesh("data=1,model=4", 8)


QWEN_7B = ModelConfig("qwen2", 152064, 3584, 18944, 28, 28, 4, 128, 1e4, qkv_bias=True)


@pytest.mark.parametrize(
    ("sizes", "config", "message"),
    [
        ((1, 8), QWEN_7B, "model=8 can't share the model's 4 KV heads evenly"),
        ((3, 1), QWEN_7B, "data=3 can't share 32 rows evenly"),
        ((1, 2), ModelConfig("llama", 97, 40, 72, 1, 4, 2, 12, 1e4), "model=2 can't share the model's 97 tokens"),
        ((1, 2), ModelConfig("llama", 96, 40, 71, 1, 4, 2, 12, 1e4), "model=2 can't share the model's 71 feed-forward"),
    ],
)
def test_what_does_not_divide_is_said_with_its_numbers(sizes, config, message):
    with pytest.raises(UserError, match=message):
        check_mesh(config, 32, AbstractMesh(sizes, ("data", "model")))


@pytest.mark.parametrize(
    "options",
    [
        {"architecture": "llama", "qkv_bias": True, "o_bias": True, "mlp_bias": True},
        {"architecture": "qwen2", "qkv_bias": True, "tied_head": True},
        {"architecture": "qwen3", "qk_norm": True},
    ],
)
def test_every_weight_has_its_place(options):
    config = ModelConfig(
        vocab_size=96, d_model=40, d_ff=72, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=12, rope_theta=1e4, **options
    )
    weights = nnx.state(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0), dtype=jnp.float32)))
    places = weight_shardings(weights, AbstractMesh((1, 2), ("data", "model")))
    for (path, leaf), place in zip(jax.tree_util.tree_leaves_with_path(weights), jax.tree.leaves(places), strict=True):
        halved = [size // part for size, part in zip(leaf.shape, place.shard_shape(leaf.shape), strict=True)]
        name = jax.tree_util.keystr(path)
        whole = "norm" in name or name.endswith(("['o']['bias'].value", "['down']['bias'].value"))
        assert sorted(halved)[:-1] == [1] * (leaf.ndim - 1), name
        assert max(halved) == (1 if whole else 2), name


def test_an_unknown_weight_has_none():
    with pytest.raises(KeyError):
        weight_letters("layers.0.attention.gate.kernel")


def test_outside_a_mesh_a_row_is_where_it_was():
    from jkv.engine.row_shards import from_owner, on_any_shard, own_row, rows_are_sharded

    flag, row = jnp.bool_(True), jnp.int32(3)
    assert not rows_are_sharded()
    assert on_any_shard(flag)[0] is flag
    assert own_row(row, 4) == (row, None)
    assert from_owner(row, None) is row
