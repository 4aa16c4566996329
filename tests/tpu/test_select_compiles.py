"""select and key_similarity, alone and inside an eviction, compiled for real TPUs by libtpu on this CPU."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("libtpu", reason="pip install -e '.[tpu]' brings the TPU compiler")

# libtpu reads its environment when it is loaded, and jax must not have been imported: a process of its own.
COMMON = """
import functools, json, re, sys
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jkv.models.config import ModelConfig
from jkv.engine.eviction import evict
from jkv.models import Decoder
from jkv.ops.key_similarity import key_similarity
from jkv.ops.select import select
from jkv.policies import RKV, Retention
from jkv.engine.sampling import Greedy
from jkv.ops.sharding import partition_spec
from jkv.engine.state import DecodeSetup, empty_state

topology, dtype, S = sys.argv[1], jnp.dtype(sys.argv[2]), 5000
devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
one, four = (Mesh(np.array(devices[: a * a]).reshape(a, a), ("data", "model")) for a in (1, 2))

def compiled(mesh, function, *arguments, **options):
    with jax.set_mesh(mesh):
        return jax.jit(function, **options).lower(*arguments).compile()

def array(mesh, letters, shape, dtype):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, partition_spec(letters)))

def squares(text):
    return len(re.findall(r"\\[(?:\\d+,)*5000,(?:\\d+,)*5000[,\\]]", text))
"""
KERNELS = """
found = {}
for mesh, rows in ((one, 1), (four, 2), (four, 1)):
    keys = array(mesh, "BKSH" if rows > 1 else "_KSH", (rows, 8, S, 128), dtype)
    positions = array(mesh, "BKS" if rows > 1 else "_KS", (rows, 8, S), jnp.int32)
    length = array(mesh, "B" if rows > 1 else "_", (rows,), jnp.int32)
    alike = compiled(mesh, functools.partial(key_similarity, threshold=0.5), keys, positions, length)
    scores, places = (array(mesh, "B__S" if rows > 1 else "____", (rows, 1, 1, S), t) for t in (jnp.float32, jnp.int32))
    kept = compiled(mesh, lambda s, p: select(s, p, 4872), scores, places)
    per_head = [array(mesh, "_lKS", (1, 32, 8, S), t) for t in (jnp.float32, jnp.int32)]
    kept_per_head = compiled(mesh, lambda s, p: select(s, p, 4872), *per_head)
    for name, kernel, program in (
        ("key_similarity", "key_similarity_tpu", alike), ("select", "select_tpu", kept),
        ("select_per_head", "select_tpu", kept_per_head),
    ):
        text, memory = program.as_text(), program.memory_analysis()
        found[f"{name} {mesh.size} {rows}"] = {
            "kernel": kernel in text, "squares": squares(text), "temporary": memory.temp_size_in_bytes,
            "moves": len(re.findall(r"all-(?:gather|reduce|to-all)", text)),
            "sorts": len(re.findall(r" sort\\(", text)), "arguments": memory.argument_size_in_bytes,
        }
# What a square looks like, if there is one.
plain = functools.partial(key_similarity, threshold=0.5, implementation="reference")
alone = [array(one, letters, shape, t) for letters, shape, t in (
    ("BKSH", (1, 1, S, 128), dtype), ("BKS", (1, 1, S), jnp.int32), ("B", (1,), jnp.int32))]
found["control"] = squares(compiled(one, plain, *alone).as_text())
print(json.dumps(found))
"""
EVICTION = """
c = ModelConfig("llama", 32000, 4096, 14336, 1, 32, 8, 128, 5e5)
graph, _ = nnx.split(nnx.eval_shape(lambda: Decoder(c, rngs=nnx.Rngs(0), dtype=dtype)))
setup = DecodeSetup(graph, c, RKV(), Retention(S, 4872, 8, 0, False, "head"), Greedy(), (0,), "auto")
place = NamedSharding(one, PartitionSpec())
abstract = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)
state = abstract(jax.eval_shape(lambda: empty_state(setup, 2, dtype)))
rows = array(one, "B", (2,), jnp.bool_)
text = compiled(one, lambda s, rows: evict(setup, (), s, rows), state, rows, donate_argnums=0).as_text()
sizes = [int(np.prod([int(n) for n in shape.split(",")])) for shape in re.findall(r"\\w\\[([\\d,]+)\\]", text)]
print(json.dumps({
    "kernels": [name in text for name in ("key_similarity_tpu", "select_tpu")], "squares": squares(text),
    "largest": max(sizes), "buffer": 2 * 8 * S * 128, "sorts": len(re.findall(r" sort\\(", text)),
}))
"""
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}  # fmt: skip


def run(script: str, *words: str):
    command = [sys.executable, "-c", COMMON + script, *words]
    done = subprocess.run(command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("topology", "dtype"),
    [
        pytest.param("v5e:2x2", "bfloat16", marks=pytest.mark.slow),
        pytest.param("v6e:2x2", "float32", marks=pytest.mark.slow),
        pytest.param("v5p:2x2x1", "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_the_kernels_compile_alone_and_on_a_mesh(topology, dtype):
    found = run(KERNELS, topology, dtype)
    assert found.pop("control") > 0
    assert len(found) == 9
    for name, program in found.items():
        assert program["kernel"], name
        assert program["squares"] == program["sorts"] == program["moves"] == 0, (name, program)
        # Of the keys nothing is copied. select's rows may be laid out anew, eight to a register.
        share = 0.05 if name.startswith("key_similarity") else 2
        assert program["temporary"] <= share * program["arguments"] + 2**20, (name, program)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_eviction_by_rkv_has_no_array_of_slots_by_slots(dtype):
    found = run(EVICTION, "v5e:2x2", dtype)
    assert found["kernels"] == [True, True]
    assert found["squares"] == found["sorts"] == 0
    assert found["largest"] == found["buffer"]
