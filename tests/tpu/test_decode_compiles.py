"""The whole decode program (model, policy, eviction, sampling, 64 steps a call) at R1-Llama-8B and R1-Qwen-7B shapes,
batch 32, compiled for real TPUs by libtpu on this CPU: lean, in place, and with the kernels in it."""

import json
import os
import subprocess
import sys

import pytest

from jkv.planning.chips import ENVIRONMENT
from tests.tpu.programs import BUDGETS, CROSS_PRODUCT, MESHES, POLICIES

pytest.importorskip("libtpu", reason="pip install -e '.[tpu]' brings the TPU compiler")

SHALLOW = 2  # layers: the full depth takes about twice as long to compile, and its layers are all alike
DEEP = (
    ("r1-llama-8b", "v5e:2x4", "data=1,model=8", "h2o", "5000"),
    ("r1-qwen-7b", "v5e:2x4", "data=2,model=4", "dynts", "2500"),
)
# What tensor parallelism needs: sums after attention and feed-forward, the embedding's rows from whoever has them, the
# best logits of each device; and flags of loops that agree.
NEEDED = {"all-reduce", "all-gather"}


def compiled(layers: int, *programs: tuple[str, ...]) -> list[dict]:
    words = [word for program in programs for word in program]
    command = [sys.executable, "-m", "tests.tpu.programs", str(layers), *words]
    done = subprocess.run(command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, timeout=2400)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(found: dict) -> None:
    print(json.dumps(found))
    layers = found["layers"]
    assert found["temporaries"] <= 0.03 * found["arguments"], found["name"]
    assert found["copies"] == [], found["name"]
    # All of the state is the donated one: what is new are the tokens drawn, [32, 64] int32, in tiles.
    assert found["not_in_place"] < 100_000
    assert found["alias_bytes"] >= found["kv"]
    assert found["aliased"] >= 2 * layers
    assert found["kernels"].get("decode_attention_tpu") == layers
    assert found["kernels"].get("compact_tpu") == layers
    assert set(found["collectives"]) <= NEEDED
    assert all(kind["largest_bytes"] < found["layer_kv"] / 8 for kind in found["collectives"].values())


@pytest.mark.slow
@pytest.mark.parametrize(("topology", "model"), MESHES)
def test_shallow(topology, model):
    """Every mesh, two policies in turn at two budgets. ``test_every_program`` has all 48."""
    turn = list(MESHES).index((topology, model))
    policies = POLICIES[:2] if turn % 2 else POLICIES[2:]
    budget = lambda policy: BUDGETS[(turn // 2 + POLICIES.index(policy)) % 2]
    found = compiled(SHALLOW, *((model, topology, MESHES[topology, model], p, budget(p)) for p in policies))
    assert len(found) == len(policies)
    for program in found:
        check(program)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("topology", "model"), MESHES)
def test_every_program(topology, model):
    mine = [program for program in CROSS_PRODUCT if program[:2] == (model, topology)]
    found = compiled(SHALLOW, *mine)
    assert len(found) == len(mine) == len(POLICIES) * len(BUDGETS)
    for program in found:
        check(program)


@pytest.mark.slow
@pytest.mark.parametrize("program", DEEP)
def test_full_depth(program):
    (found,) = compiled(0, program)
    assert found["layers"] == {"r1-llama-8b": 32, "r1-qwen-7b": 28}[program[0]]
    check(found)
