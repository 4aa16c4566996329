"""python -m jkv.plan: what it refuses, and figures that a hand can check."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh

from converters.config import from_hf
from converters.files import read_json
from jkv.config.plan import PlanConfig
from jkv.engine.sampling import Greedy
from jkv.errors import UserError
from jkv.files.shipped import MODELS, OF_HUB
from jkv.models import Decoder
from jkv.planning import chips
from jkv.planning.compile import Target, abstract_parameters
from jkv.planning.models import shipped
from jkv.planning.report import largest_batch
from jkv.planning.step_bytes import kv_bytes, mean_occupancy, step_bytes
from jkv.policies import Retention, get_policy

PARAMETERS = {
    "r1-qwen-1.5b": 1_777_088_000,
    "r1-qwen-7b": 7_615_616_512,
    "r1-qwen-14b": 14_770_033_664,
    "r1-qwen-32b": 32_763_876_352,
    "r1-llama-8b": 8_030_261_248,
    "r1-llama-70b": 70_553_706_496,
}


def command(*words: str, code: str = "from jkv.plan import main; from jkv.terminal.command import run; run(main)"):
    start = ["-m", "jkv.plan"] if code.startswith("from jkv.plan") else ["-c", code]
    return subprocess.run([sys.executable, *start, *words], capture_output=True, text=True, timeout=1800)


def target(model="r1-llama-8b", policy="window", retain=2188, budget=2500, granularity="shared") -> Target:
    config = from_hf(read_json(MODELS / f"{model}.json"))
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model"))
    ready, parameters = abstract_parameters(get_policy(policy)(), config, jnp.bfloat16, (8192, 2048))
    rule = Retention(budget, retain, 8, 0, False, granularity)
    return Target(config, mesh, ready, parameters, rule, Greedy(), jnp.dtype("bfloat16"))


def test_every_shipped_config_is_read_and_has_its_checkpoints_parameters():
    assert set(shipped()) == set(OF_HUB.values()) == set(PARAMETERS)
    for name, expected in PARAMETERS.items():
        config = from_hf(read_json(MODELS / f"{name}.json"))
        one, two = (_parameters(dataclasses.replace(config, n_layers=n)) for n in (1, 2))
        assert one + (config.n_layers - 1) * (two - one) == expected, name
        assert config.eos_ids


def _parameters(config) -> int:
    weights = nnx.state(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))
    return sum(leaf.size for leaf in jax.tree.leaves(weights))


def test_step_bytes_by_hand():
    parts = step_bytes(target(), 32)
    layer = 4096 * (32 + 8 + 8) * 128 + 32 * 128 * 4096 + 3 * 4096 * 14336 + 2 * 4096
    assert parts["weights"] == 2 * (32 * layer + 4096 + 4096 * 128256 + 32 * 4096)
    slot = 32 * 32 * 8 * 128 * 2 * 2  # L B K H, key and value, bfloat16
    assert parts["kv_written"] == slot
    assert parts["kv_read"] == slot * (2189 + 2500) / 2
    assert parts["logits"] == 2 * 32 * 128256 * 4
    assert parts["policy"] == parts["attention"] == 0
    assert parts["evict"] == 2 * slot * 2188 // 312
    assert kv_bytes(target(), 32) == slot * 2500


def test_a_policy_pays_for_what_it_asks():
    assert step_bytes(target(policy="h2o"), 32)["attention"] == 2 * 32 * 32 * 32 * 2500 * 4
    assert step_bytes(target(policy="dynts"), 32)["policy"] == 2 * (4096 * 8192 + 8192 * 2048 + 2048)
    assert mean_occupancy(target(retain=2499)) == 2500
    assert step_bytes(target(retain=2499), 32)["evict"] == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v9:2x2", "not a topology"),
        ("v5e", "not a topology"),
        ("v5e:2x", "not a topology"),
        ("v5e:2x2x1", "has 2 axes, not 3"),
    ],
)
def test_what_is_no_topology_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        chips.parse_topology(text)


def test_without_the_compiler_it_says_how_to_get_it():
    code = (
        "import sys; sys.modules['libtpu'] = None; from jkv.plan import main; "
        "from jkv.terminal.command import run; run(main)"
    )
    done = command("--budget", "64", code=code)
    assert done.returncode == 2
    assert "pip install 'jax[tpu]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert command("--help", code=code).returncode == 0


REFUSED = {
    "a grid libtpu doesn't know": (["--topology", "v5e:3x5"], "libtpu refuses 'v5e:3x5'"),
    "another number of devices": (["--topology", "v5e:2x2"], "asks for 8 devices, there are 4"),
    "heads that don't divide": (["--model", "r1-qwen-7b"], "model=8 can't share the model's 4 KV heads"),
    "rows that don't divide": (["--mesh", "data=8", "--batch-size", "12"], "data=8 can't share 12 rows"),
    "no such model": (["--model", "r2"], "no such model: 'r2'"),
    "a budget that keeps everything": (["--retain", "2500"], "retain 2500 leaves nothing to evict"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_compiled_is_refused_before(case, monkeypatch):
    pytest.importorskip("libtpu", reason="pip install -e '.[tpu]' brings the TPU compiler")
    for name, value in chips.ENVIRONMENT.items():  # other processes may have loaded libtpu, too
        monkeypatch.setenv(name, value)
    words, message = REFUSED[case]
    from jkv.config import command_line
    from jkv.planning.report import target_of

    words = ["--budget", "2500", "--policy", "window", *words]
    config = command_line.parse(PlanConfig, words, prog="plan", description="")
    with pytest.raises(UserError, match=message):
        target_of(config)


def test_a_budget_is_asked_for():
    with pytest.raises(UserError, match="--budget: is missing"):
        PlanConfig().decode()


@pytest.mark.parametrize("unit", [1, 4])
@pytest.mark.parametrize("start", [4, 32, 4000])
@pytest.mark.parametrize("usable", [500, 1_001, 1_049, 20_000, 123_456])
def test_the_largest_batch_is_found_with_few_compilations(unit, start, usable):
    compiled = []

    def peak_at(rows: int) -> int:
        compiled.append(rows)
        return 1000 + 37 * rows + 3 * (rows // 8)  # weights, state, temporaries in tiles

    found = largest_batch(unit, start, usable, 37 * unit, peak_at)
    fits = [rows for rows in range(unit, 10_000, unit) if 1000 + 37 * rows + 3 * (rows // 8) <= usable]
    assert found == max(fits, default=0)
    assert found == 0 or found in compiled
    assert len(compiled) <= 5
    assert len(set(compiled)) == len(compiled)


def test_what_is_refused_for_something_else_than_bytes_is_closed_in_on():
    """A tiny model's bytes would allow 200,000 rows, but above 1,500 something else runs out."""
    compiled = []

    def peak_at(rows: int) -> int | None:
        compiled.append(rows)
        return 1000 + 5 * rows if rows <= 1500 else None

    found = largest_batch(1, 32, 1_000_000, 5, peak_at)
    assert 750 < found <= 1500
    assert len(compiled) <= 5
    assert largest_batch(1, 32, 1_000_000, 5, lambda rows: None) == 0


# model, topology, mesh, policy, batch: two layers of real sizes.
HAND = (
    ("r1-llama-8b", "v5e:2x4", {"data": 1, "model": 8}, "window", 32, 2500),
    ("r1-qwen-7b", "v6e:2x2", {"data": 2, "model": 2}, "dynts", 32, 5000),
    ("r1-qwen-1.5b", "v5p:1x1x1", {"data": 1, "model": 1}, "rkv", 8, 1000),
)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "topology", "mesh", "policy", "rows", "budget"), HAND)
def test_the_plan_agrees_with_the_compiler_and_with_a_hand(model, topology, mesh, policy, rows, budget, tmp_path):
    pytest.importorskip("libtpu", reason="pip install -e '.[tpu]' brings the TPU compiler")
    data = {**read_json(MODELS / f"{model}.json"), "num_hidden_layers": 2}
    (tmp_path / "config.json").write_text(json.dumps(data))
    words = ["--model", tmp_path, "--topology", topology, "--mesh", ",".join(f"{a}={n}" for a, n in mesh.items())]
    words += ["--policy", policy, "--batch-size", rows, "--budget", budget, "--json"]
    words += ["--no-max-batch"]
    done = command(*map(str, words))
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    d, f, v, n, k = (
        data[name]
        for name in (
            "hidden_size", "intermediate_size", "vocab_size", "num_attention_heads", "num_key_value_heads",
        )
    )  # fmt: skip
    h, m = data.get("head_dim", d // n), mesh["model"]
    bias = (n + 2 * k) * h // m if data["model_type"] == "qwen2" else 0
    layer = (d * (n + 2 * k) * h + n * h * d + 3 * d * f) // m + bias + 2 * d
    weights = 2 * (2 * layer + 2 * v * d // m + d)
    kv = 2 * 2 * 2 * (rows // mesh["data"]) * (k // m) * budget * h
    assert found["weights_bytes"] == weights
    assert found["kv_bytes"] == kv
    held = weights + kv + found["state_bytes"] + found["policy_bytes"]
    assert found["argument_bytes"] == pytest.approx(held, rel=0.02)
    assert found["alias_bytes"] == pytest.approx(kv + found["state_bytes"], rel=0.02)
    assert found["kv_copies"] == 0
    scoring = {"key_similarity_tpu": 2} if policy == "rkv" else {}
    assert found["kernels"] == {"decode_attention_tpu": 2, "compact_tpu": 2, "select_tpu": 1, **scoring}
    assert list(found["prefill_kernels"].values()) == [2]
    assert all(name.startswith("splash") for name in found["prefill_kernels"])
    assert found["fits"] is True
    assert found["roofline_tps"] == pytest.approx(rows * found["bandwidth"] / found["step_bytes"], rel=1e-3)
    assert found["max_batch"] is None


@pytest.mark.slow
def test_seven_billion_parameters_do_not_fit_one_v5e():
    pytest.importorskip("libtpu", reason="pip install -e '.[tpu]' brings the TPU compiler")
    words = "--model r1-qwen-7b --topology v5e:1x1 --mesh data=1,model=1 --batch-size 32 --budget 2500 --policy window"
    done = command(*words.split(), "--json", "--no-max-batch")
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["fits"] is False
    assert found["weights_bytes"] == 2 * PARAMETERS["r1-qwen-7b"]
    assert found["peak_bytes"] > found["usable_bytes"]
    assert found["weights_bytes"] + found["kv_bytes"] > found["usable_bytes"]
    assert found["kv_copies"] is None


def test_it_is_found_from_any_directory(tmp_path):
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "jkv.plan", "--help"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name in PARAMETERS:
        assert name in done.stdout
