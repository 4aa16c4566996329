"""The label step at R1-Llama-8B shapes and 18,000 tokens, compiled for one TPU v5p by libtpu on this CPU."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("libtpu", reason="pip install -e '.[tpu]' brings the TPU compiler")

# libtpu reads its environment when it is loaded, and jax must not have been imported: a process of its own.
SCRIPT = """
import functools, json, sys
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jkv.models.config import Llama3Scaling, ModelConfig
from jkv.predictor_training.labels import label, padded_length
from jkv.models import Decoder

c = ModelConfig(
    "llama", 128256, 4096, 14336, 32, 32, 8, 128, 5e5, Llama3Scaling(8.0, 1.0, 4.0, 8192), rms_eps=1e-5,
)
topology = topologies.get_topology_desc(platform="tpu", topology_name="v5p:2x2x1")
mesh = Mesh(np.array(topology.devices[:1]), ("x",))
place = NamedSharding(mesh, PartitionSpec())
abstract = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)
graph, weights = nnx.split(nnx.eval_shape(lambda: Decoder(c, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)))
tokens = jax.ShapeDtypeStruct((1, padded_length(int(sys.argv[1]))), jnp.int32, sharding=place)
book = jax.ShapeDtypeStruct((1,), jnp.int32, sharding=place)
run = jax.jit(functools.partial(label, graph, horizon=128))
with jax.set_mesh(mesh):
    memory = run.lower(abstract(weights), tokens, book, book, book).compile().memory_analysis()
print(json.dumps({"weights": memory.argument_size_in_bytes, "temporary": memory.temp_size_in_bytes}))
"""
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}  # fmt: skip
HBM = 95 * 10**9


def compiled(length: int) -> dict[str, int]:
    command = [sys.executable, "-c", SCRIPT, str(length)]
    done = subprocess.run(command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_labels_of_18_000_tokens_fit_one_v5p():
    found = compiled(18_000)
    print(found)
    assert 15e9 < found["weights"] < 17e9
    # One layer's at most: all heads' matrices would be 32 * 18,000^2 * 4 bytes = 41 GB.
    assert found["temporary"] < 1.5e9
    assert found["weights"] + found["temporary"] < HBM
