"""The decode program, compiled for a real TPU by libtpu on this CPU: no copy of the KV buffer, none of its size."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("libtpu", reason="pip install -e '.[tpu]' brings the TPU compiler")

# libtpu reads its environment when it is loaded, and jax must not have been imported: a process of its own.
SCRIPT = """
import json, re, sys
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jkv.benchmark.policies import random_parameters
from jkv.config import ModelConfig
from jkv.models import Decoder
from jkv.policies import Retention, get_policy
from jkv.sampling import Greedy
from jkv.state import Program, empty_state
from jkv.step import decode

name, granularity, retain = sys.argv[1], sys.argv[2], int(sys.argv[3])
B, S = 16, 2560
c = ModelConfig("qwen2", 32000, 1536, 8960, 1, 12, 2, 128, 1e6, qkv_bias=True)
policy, parameters = random_parameters(get_policy(name)(), c)
topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
mesh = Mesh(np.array(topology.devices[:1]), ("x",))
place = NamedSharding(mesh, PartitionSpec())
abstract = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)
graph, weights = nnx.split(nnx.eval_shape(lambda: Decoder(c, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)))
program = Program(graph, c, policy, Retention(S, retain, 128, 0, False, granularity), Greedy(), (0,), "xla")
state = jax.eval_shape(lambda: empty_state(program, B, jnp.bfloat16))
flag = jax.ShapeDtypeStruct((), jnp.bool_, sharding=place)
run = jax.jit(lambda w, s, p, a, b: decode(program, w, s, p, a, b, steps=64), donate_argnums=1)
with jax.set_mesh(mesh):
    compiled = run.lower(abstract(weights), abstract(state), abstract(parameters), flag, flag).compile()
copies = re.findall(r"= bf16\\[16,2,2560,128\\]\\S* copy\\(", compiled.as_text())
temporary = compiled.memory_analysis().temp_size_in_bytes
print(json.dumps({"copies": len(copies), "temporary": temporary, "kv": c.kv_bytes(B, S, 2)}))
"""
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "granularity", "retain"),
    [
        ("window", "shared", 2432),
        ("window", "shared", 2559),
        ("h2o", "shared", 2432),
        ("h2o", "head", 2559),
        ("rkv", "head", 2432),
        ("dynts", "shared", 2432),
    ],
)
def test_no_copy_of_the_buffer(policy, granularity, retain):
    command = [sys.executable, "-c", SCRIPT, policy, granularity, str(retain)]
    done = subprocess.run(command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["copies"] == 0
    # dynts: its predictor's weights, moved once a call.
    assert found["temporary"] < 0.5 * found["kv"]
