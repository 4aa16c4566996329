"""Loads a checkpoint onto a mesh of simulated devices and says what memory that took.

Run as ``python -m tests.mesh.loading DIRECTORY PROCESSES PROCESS PORT`` with the number of devices of this process in
XLA_FLAGS: a process of its own, as the peak of a process's memory is never forgotten. ``write`` makes checkpoints.
"""

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

from converters.config import write_config
from converters.shards import Outgoing, write
from converters.tables import rows
from jkv.models.config import ModelConfig


def write_synthetic(directory: pathlib.Path, config: ModelConfig) -> int:
    """A bfloat16 checkpoint of random numbers, tensor by tensor. Returns its bytes."""
    rng = np.random.default_rng(0)

    def outgoing(row) -> Outgoing:
        shape = row.file_shape(config)
        # Bits below 0x7f80: every one is a finite number.
        make = lambda: (rng.integers(0, 1 << 16, shape, np.uint16) & 0xBF7F).view(jnp.bfloat16)
        return Outgoing(row.name, jnp.bfloat16, shape, make)

    directory.mkdir(parents=True, exist_ok=True)
    tensors = [outgoing(row) for row in rows(config)]
    write(directory, tensors, 10**9)
    write_config(config, directory, "bfloat16")
    return sum(tensor.nbytes for tensor in tensors)


def memory(kind: str) -> int:
    """VmHWM (the peak) or VmRSS of this process, bytes."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind + ":"))


def main(directory: str, processes: int, process: int, port: int) -> None:
    """Load, and print as JSON: memory before and at its peak, bytes of the shards here, a checksum of all leaves."""
    if processes > 1:
        jax.distributed.initialize(f"localhost:{port}", processes, process)
    from converters.fill import leaves
    from jkv.distributed.mesh import make_mesh
    from jkv.distributed.weights import place_weights
    from jkv.load import load

    mesh = make_mesh(jax.devices(), {"data": 1, "model": jax.device_count()})
    before = memory("VmRSS")
    loaded = load(directory, None, place_weights(mesh))
    peak = memory("VmHWM")
    found = leaves(loaded.model)
    assert {str(leaf.dtype) for leaf in found.values()} == {"bfloat16"}
    shards = {path: [s.data for s in leaf.addressable_shards] for path, leaf in found.items()}
    report = {
        "before": before,
        "peak": peak,
        "shards": sum(shard.nbytes for pieces in shards.values() for shard in pieces),
        # Bits added up; replicated leaves count once a device.
        "sum": int(sum(np.asarray(x).view(np.uint16).sum(dtype=np.uint64) for p in shards.values() for x in p) % 2**63),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
