"""TPU generations, and the devices of a topology: libtpu, the TPU's compiler, compiles for them on any machine.

JAX is not imported at the top of this file: `prepare` has to be called before JAX is.
"""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import MutableMapping
from typing import Any

from jkv.errors import UserError

GIB = 2**30
# JAX reads its variable when it is imported, libtpu the others when it is loaded. With them this process computes on
# its CPU, and libtpu asks no metadata server which TPU this machine has.
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
    """One TPU generation.

    Its data sheets are docs.cloud.google.com/tpu/docs/v5e, v5p and v6e. Read in November 2026 they give 16 GB and
    819 GB/s, 95 GB and 2,765 GB/s, 32 GB and 1,638 GB/s.

    Attributes:
        name: as topologies are called by it, 'v5e'.
        axes: dimensions of its grid of chips, 2 or 3.
        hbm: bytes of a chip's memory.
        usable: how many of them a program may have. The compiler names the number when it refuses a program; these
            are of libtpu 0.0.42. The runtime has the rest.
        bandwidth: bytes/s of that memory, from the data sheet.
    """

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
    """Whether libtpu, the TPU's compiler, is installed."""
    return importlib.util.find_spec("libtpu") is not None


def prepare(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set the environment variables that JAX and libtpu read. Call it before JAX is imported.

    Args:
        environment: where to set them; this process's unless given.
    """
    environment.update(ENVIRONMENT)


def require() -> None:
    """Raise UserError if libtpu isn't installed."""
    if not installed():
        raise UserError(
            "the TPU compiler, libtpu, isn't installed", mend="pip install 'jax[tpu]' brings it, without a TPU, too"
        )


def parse_topology(text: str) -> tuple[Chip, tuple[int, ...]]:
    """What a topology's name means.

    Args:
        text: a generation and its grid of chips, as 'v5e:2x4'.

    Returns:
        The generation, and the chips along each axis of the grid, as (2, 4).

    Raises:
        UserError: the text doesn't have this form, or the generation's grids have another number of axes.
    """
    name, _, grid = text.partition(":")
    mend = f"write GENERATION:GRID, as in v5e:2x4 or v5p:2x2x1; generations are {', '.join(CHIPS)}"
    if name not in CHIPS or not re.fullmatch(r"[1-9][0-9]{0,2}(x[1-9][0-9]{0,2})*", grid):
        raise UserError(f"{text!r} is not a topology", where="--topology", mend=mend)
    chip, sizes = CHIPS[name], tuple(int(size) for size in grid.split("x"))
    if len(sizes) != chip.axes:
        raise UserError(f"{text!r}: {name} has {chip.axes} axes, not {len(sizes)}", where="--topology", mend=mend)
    return chip, sizes


def topology_devices(text: str) -> tuple[Chip, list[Any]]:
    """The chip of a topology, and its devices: programs can be compiled for them, but not run.

    Args:
        text: as `parse_topology` reads it.

    Returns:
        The generation, and one ``jax.Device`` for each chip, to build a mesh of.

    Raises:
        UserError: the text names no topology, or one that libtpu doesn't know.
    """
    from jax.experimental import topologies

    chip, sizes = parse_topology(text)
    hosts = {}
    if math.prod(sizes) < 4:  # libtpu takes a host to have four or eight chips, unless it is given their number
        hosts = {"chips_per_host_bounds": [*sizes, 1, 1][:3]}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=text, **hosts)
    except Exception as error:  # of many types, from libtpu and from JAX
        reason = next(iter(str(error).splitlines()), "").removeprefix("INVALID_ARGUMENT: ")
        raise UserError(f"libtpu refuses {text!r} ({reason})", where="--topology", mend="give another grid") from None
    devices = list(found.devices)
    if len(devices) != math.prod(sizes):
        raise UserError(f"{text!r} has {len(devices)} devices, expected {math.prod(sizes)}", where="--topology")
    return chip, devices
