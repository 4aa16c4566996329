"""TPU chips by generation, and the topologies that libtpu compiles for without one."""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import MutableMapping
from typing import Any

from jkv.errors import UserError

GIB = 2**30
# libtpu reads these when it is loaded, before or while jax starts: no metadata server is asked for the machine's TPU,
# and the process computes on the CPU.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_MIN_LOG_LEVEL": "2",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}


@dataclasses.dataclass(frozen=True)
class Chip:
    """hbm: bytes of the chip, and ``usable`` of them: what the TPU compiler lets a program have (it says so when it
    refuses one; measured with libtpu 0.0.42), the rest is the runtime's.  bandwidth: bytes/s of HBM, as its data sheet
    has it (docs.cloud.google.com/tpu/docs/v5e, v5p, v6e; read November 2026: 16 GB and 819 GB/s, 95 GB and 2,765 GB/s,
    32 GB and 1,638 GB/s)."""

    name: str
    axes: int
    hbm: int
    usable: int
    bandwidth: float


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", 2, 16 * GIB, int(15.75 * GIB), 819e9),
        Chip("v5p", 3, 96 * GIB, int(95.74 * GIB), 2765e9),
        Chip("v6e", 2, 32 * GIB, int(31.25 * GIB), 1638e9),
    )
}


def installed() -> bool:
    """Whether the TPU compiler is here."""
    return importlib.util.find_spec("libtpu") is not None


def prepare(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set what libtpu reads. Call it before jax is imported."""
    environment.update(ENVIRONMENT)


def require() -> None:
    """Raises UserError when the TPU compiler isn't here."""
    if not installed():
        raise UserError(
            "the TPU compiler, libtpu, isn't installed", mend="pip install 'jax[tpu]' brings it, without a TPU, too"
        )


def parse_topology(text: str) -> tuple[Chip, tuple[int, ...]]:
    """'v5e:2x4' as a chip and its grid. Raises UserError if it isn't that."""
    name, _, grid = text.partition(":")
    mend = f"write GENERATION:GRID, as in v5e:2x4 or v5p:2x2x1; generations are {', '.join(CHIPS)}"
    if name not in CHIPS or not re.fullmatch(r"[1-9][0-9]{0,2}(x[1-9][0-9]{0,2})*", grid):
        raise UserError(f"{text!r} is no topology", where="--topology", mend=mend)
    chip, sizes = CHIPS[name], tuple(int(size) for size in grid.split("x"))
    if len(sizes) != chip.axes:
        raise UserError(f"{text!r}: {name} has {chip.axes} axes, not {len(sizes)}", where="--topology", mend=mend)
    return chip, sizes


def topology_devices(text: str) -> tuple[Chip, list[Any]]:
    """The chip, and a topology's devices, to build a mesh from. Raises UserError for one that libtpu doesn't know."""
    from jax.experimental import topologies

    chip, sizes = parse_topology(text)
    hosts = {}
    if math.prod(sizes) < 4:  # a host has four chips or eight unless it is told otherwise
        hosts = {"chips_per_host_bounds": [*sizes, 1, 1][:3]}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=text, **hosts)
    except Exception as error:  # libtpu's own and jax's
        reason = next(iter(str(error).splitlines()), "").removeprefix("INVALID_ARGUMENT: ")
        raise UserError(f"libtpu refuses {text!r} ({reason})", where="--topology", mend="give another grid") from None
    devices = list(found.devices)
    if len(devices) != math.prod(sizes):
        raise UserError(f"{text!r} has {len(devices)} devices, expected {math.prod(sizes)}", where="--topology")
    return chip, devices
