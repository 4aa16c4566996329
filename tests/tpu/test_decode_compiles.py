"""The whole decode program (model, policy, eviction, sampling, 64 steps a call) at R1-Llama-8B and R1-Qwen-7B shapes,
batch 32, compiled for real TPUs by libtpu on this CPU: lean, in place, and with the kernels in it."""

import json
import math
import os
import re
import subprocess
import sys

import pytest

from jkv.planning.chips import ENVIRONMENT
from tests.tpu.programs import BUDGETS, MESHES, POLICIES

pytest.importorskip("libtpu", reason="pip install -e '.[tpu]' brings the TPU compiler")

SHALLOW = 2  # layers: the full depth takes about twice as long to compile, and its layers are all alike
DEEP = ("r1-llama-8b", "v5e:2x4", "data=1,model=8", "h2o", "5000")
# What tensor parallelism needs: sums after attention and feed-forward, the embedding's rows from whoever has them, the
# best logits of each device; and flags of loops that agree.
NEEDED = {"all-reduce", "all-gather"}
# int8 buffers, with weights of the model's dtype and of int8; one chip has nobody to talk to.
INT8 = (
    ("r1-llama-8b", "v5e:2x4", "data=1,model=8", "rkv+kv", "2500"),
    ("r1-qwen-7b", "v5e:1x1", "data=1,model=1", "dynts+kv+weights", "5000"),
    ("r1-qwen-7b", "v5e:2x4", "data=2,model=4", "h2o+kv+weights", "5000"),
)


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


def elements(shapes: str) -> int:
    """Of the largest part of 'bf16[32,4096] f32[32]'."""
    return max(math.prod(map(int, dims.split(","))) for dims in re.findall(r"\[([0-9,]+)\]", shapes))


def check_sums(found: dict, rows: int) -> None:
    """What devices tell each other, one by one. rows: of one place on the data axis."""
    wide = rows * found["d_model"]
    by_size = lambda size: [shapes for _, shapes in found["sums"] if elements(shapes) == size]
    # Twice a layer, after attention and feed-forward, each row's hidden state; and the rows of the embedding, whose
    # integers the compiler packs by fours.
    int8 = "+weights" in found["name"]
    packed = [shapes for _, shapes in found["sums"] if shapes.startswith("u32[") and 4 * elements(shapes) == wide]
    assert len(packed) == int8, found["sums"]
    assert len(by_size(wide)) == 2 * found["layers"] + (not int8), found["sums"]
    for kind, shapes in found["sums"]:
        if elements(shapes) == wide or shapes in packed:
            assert kind == "all-reduce"
        elif kind == "all-gather":  # each device's 20 best logits, and which tokens they are
            assert re.fullmatch(r"[fs]32\[\d+,20,\d+\]", shapes)
        else:  # scores averaged over heads, [S] or [B, S], to choose what is evicted; a row's numbers; loops' flags
            assert elements(shapes) <= rows * found["budget"]


@pytest.mark.slow
@pytest.mark.parametrize(("topology", "model"), MESHES)
def test_shallow(topology, model):
    """Every mesh, two policies in turn at two budgets. ``python -m tests.tpu.programs 2 all`` compiles all 48."""
    turn = list(MESHES).index((topology, model))
    policies = POLICIES[:2] if turn % 2 else POLICIES[2:]
    budget = lambda policy: BUDGETS[(turn // 2 + POLICIES.index(policy)) % 2]
    found = compiled(SHALLOW, *((model, topology, MESHES[topology, model], p, budget(p)) for p in policies))
    assert len(found) == len(policies)
    for program in found:
        check(program)


@pytest.mark.slow
def test_int8_buffers():
    for found in compiled(SHALLOW, *INT8):
        check(found)
        # Integers and scales of keys and values, each in place.
        assert found["aliased"] >= 4 * found["layers"]
        if " v5e:1x1 " in found["name"]:
            assert found["sums"] == []
        else:
            check_sums(found, found["rows"])


@pytest.mark.slow
def test_full_depth():
    (found,) = compiled(0, DEEP)
    assert found["layers"] == 32
    check(found)
