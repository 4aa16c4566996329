"""decode_attention, compiled for an H100 on this machine by JAX's CUDA plugin: no GPU, no driver.

The plugin brings XLA's GPU compiler and Mosaic's; ptxas comes from NVIDIA's wheel. `pip install -e '.[cuda]'` has both.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = next((name for name in ("cuda13", "cuda12") if importlib.util.find_spec(f"jax_{name}_plugin")), None)
pytestmark = pytest.mark.skipif(PLUGIN is None, reason="pip install -e '.[cuda]' brings the GPU compiler")

# What the compiler asks a device for: XLA's description of the H100 SXM.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84978434048
  cuda_compute_capability { major: 9 minor: 0 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
SCRIPT = """
import functools, json, sys
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jkv.ops.decode_attention import pallas_gpu, xla_dense

form, B, N, K, S = sys.argv[1], *map(int, sys.argv[2:6])
H = 128
device = topologies.get_topology_desc("h100", "cuda", target_config=sys.argv[6], topology="1x1x1").devices[0]
place = NamedSharding(Mesh(np.array([device]), ("x",)), PartitionSpec())
like = lambda *shape, dtype=jnp.bfloat16: jax.ShapeDtypeStruct(shape, dtype, sharding=place)
buffers, rows = [like(B, K, S, H)] * 2, like(B, dtype=jnp.int32)
if form == "pallas":
    step = functools.partial(pallas_gpu.decode_attention, scale=H**-0.5)
    lowered = jax.jit(step, donate_argnums=(3, 4)).lower(like(B, N, H), *[like(B, K, H)] * 2, *buffers, rows, rows)
else:
    lowered = jax.jit(functools.partial(xla_dense.attend, scale=H**-0.5)).lower(like(B, N, H), *buffers, rows)
compiled = lowered.compile()
memory = compiled.memory_analysis()
found = {"temporary": memory.temp_size_in_bytes, "aliased": memory.alias_size_in_bytes}
print(json.dumps({**found, "kernel": "mosaic_gpu" in compiled.as_text(), "kv": 4 * B * K * S * H}))
"""


def _compile(tmp_path: Path, form: str, *sizes: int) -> tuple[dict, str]:
    """The figures of the compiled program, and what ptxas says about its kernel."""
    places = [Path(place) / "nvidia" for place in sys.path]
    ptxas = next((file for place in places for file in place.glob("*/bin/ptxas")), None)
    if ptxas is None:
        pytest.skip("no ptxas beside the CUDA plugin")
    root = str(ptxas.parent.parent)
    environment = {
        **os.environ, "JAX_PLATFORMS": "cpu", "CUDA_ROOT": root, "MOSAIC_GPU_CUDA_ROOT": root,
        "PATH": f"{ptxas.parent}:{os.environ['PATH']}",
        "XLA_FLAGS": f"--xla_gpu_cuda_data_dir={root} --xla_gpu_autotune_level=0",
        "MOSAIC_GPU_DUMP_TO": str(tmp_path), "MOSAIC_GPU_DUMP_PTXAS": "1",
    }  # fmt: skip
    command = [sys.executable, "-c", SCRIPT, form, *map(str, sizes), H100]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    told = "".join(file.read_text() for file in tmp_path.glob("*.ptxas"))
    return json.loads(done.stdout.splitlines()[-1]), told


SIZES = [(64, 32, 8, 2500), (20, 28, 4, 5000)]


@pytest.mark.parametrize("sizes", SIZES, ids=["r1-llama-8b", "r1-qwen-7b"])
def test_kernel(sizes, tmp_path):
    found, told = _compile(tmp_path, "pallas", *sizes)
    assert found["kernel"]
    assert found["aliased"] == found["kv"]  # keys and values are updated in place
    assert found["temporary"] < 0.03 * found["kv"]
    assert "for 'sm_90a'" in told
    assert "0 bytes spill stores, 0 bytes spill loads" in told


@pytest.mark.parametrize("sizes", SIZES, ids=["r1-llama-8b", "r1-qwen-7b"])
def test_dense_xla_holds_nothing_of_the_buffers_size(sizes, tmp_path):
    found, _ = _compile(tmp_path, "xla", *sizes)
    assert not found["kernel"]
    # Scores and weights of all slots, float32: 4 bytes for G heads beside the 4 * H of a key and a value.
    assert found["temporary"] < 0.15 * found["kv"]
