"""Which mesh a run gets: the one that ``--mesh`` asks for, or with ``--mesh auto`` the one with the fastest steps.

Where several hosts share a run, ``--mesh`` speaks of all their devices, and each host gets its own part of that mesh
(``jkv/distributed/README.md``). Fastest is by an estimate from bytes and a number of sums, not by measurement.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from jkv.distributed.hosts import Hosts, rows_per_replica
from jkv.distributed.mesh import check_sizes, make_mesh, parse_mesh
from jkv.errors import UserError
from jkv.models.config import ModelConfig
from jkv.ops.sharding import DATA, MODEL

AUTO = "auto"
ONE_HOST = Hosts()
# Round numbers that only rank meshes; none is measured. Bytes a second that a device reads from its memory: between
# v5e's 819e9 and v6e's 1638e9 (jkv/planning/chips.py has the data sheets' numbers).
_BANDWIDTH = 1e12
# Seconds that the devices of the model axis take for one sum over them of a step's activations, which are small.
_ALL_REDUCE = 10e-6
# Share of a device's memory that weights and buffer may fill; the rest is for temporaries.
_USABLE = 0.9


def settle_mesh(
    text: str | None,
    config: ModelConfig,
    *,
    rows: int,
    slots: int,
    dtype: DTypeLike,
    weights: str | None = None,
    kv: str | None = None,
    devices: Sequence[Any] | None = None,
    usable: int | None = None,
    hosts: Hosts = ONE_HOST,
) -> Mesh | None:
    """Make the mesh that ``--mesh`` names.

    Args:
        text: of ``--mesh``: sizes of axes, 'auto', or None for no mesh. It speaks of all hosts' devices together.
        config: the model's.
        rows: of the batch (B), of all hosts together.
        slots: that a row owns (S).
        dtype: of weights and buffer, where they are not int8.
        weights: 'int8' for int8 weights.
        kv: 'int8' for an int8 buffer.
        devices: the devices to choose from; the first of them are used. All of the run's by default.
        usable: bytes of memory of a device; by default a device of this host is asked.
        hosts: those that share the devices, and which of them this one is.

    Returns:
        The mesh of this host's replica: over its own devices, or, where `model` is larger than a host, over those of
        the host group that holds the replica. None without ``text``.

    Raises:
        UserError: text that can't be read, more devices than there are, or sizes that don't divide.
    """
    if text is None:
        return None
    available = list(jax.devices() if devices is None else devices)
    per_host = len(available) // hosts.count
    if text == AUTO:
        if usable is None:  # a process can ask only its own devices for their memory
            usable = _memory(next((d for d in available if d.process_index == hosts.index), available[0]))
        held = weight_count(config) * jnp.dtype(weights or dtype).itemsize
        buffer = config.kv_bytes(rows, slots, jnp.dtype(dtype).itemsize, kv)
        sizes = _best_for_hosts(config, per_host, rows=rows, weights=held, buffer=buffer, usable=usable, hosts=hosts)
    else:
        sizes = parse_mesh(text)
        check_sizes(config, rows, sizes)
    count = sizes[DATA] * sizes[MODEL]
    if hosts.count == 1:
        if count > per_host:
            what = f"{text} asks for {count} devices, there are {per_host}"
            raise UserError(what, where="--mesh", mend=f"let data x model be at most {per_host}")
        return make_mesh(available[:count], sizes)
    hosts = _group_hosts(text, sizes, hosts, per_host)
    rows_per_replica(rows, hosts)
    own = [device for device in available if device.process_index // hosts.together == hosts.replica]
    return make_mesh(own[: count // hosts.replicas], {DATA: sizes[DATA] // hosts.replicas, MODEL: sizes[MODEL]})


def _group_hosts(text: str, sizes: dict[str, int], hosts: Hosts, per_host: int) -> Hosts:
    """``hosts``, with how many of them hold a replica together. Each has ``per_host`` devices.

    Raises UserError for a mesh that they can't share evenly, or that has too many devices for them.
    """
    data, model = sizes[DATA], sizes[MODEL]
    count = hosts.count
    if model > per_host and (model % per_host or count % (model // per_host)):
        what = f"model={model} can't be held by whole hosts of {per_host} devices each, of which there are {count}"
        raise UserError(what, where="--mesh", mend=f"give a multiple of {per_host} that divides {count * per_host}")
    hosts = dataclasses.replace(hosts, together=max(1, model // per_host))
    groups = f"{count} hosts" if hosts.together == 1 else f"{hosts.replicas} groups of {hosts.together} hosts"
    if data % hosts.replicas:
        what = f"data={data} can't be shared by {groups} evenly"
        raise UserError(what, where="--mesh", mend=f"give a data axis that is a multiple of {hosts.replicas}")
    asked, have = data // hosts.replicas * model, hosts.together * per_host
    if asked > have:
        what = f"{text} asks for {asked} devices of each of {groups}, which have {have}"
        raise UserError(what, where="--mesh", mend=f"let data x model be at most {count * per_host}")
    return hosts


def _best_for_hosts(
    config: ModelConfig, per_host: int, *, rows: int, weights: int, buffer: int, usable: int | None, hosts: Hosts
) -> dict[str, int]:
    """``best_sizes`` for the devices of all hosts.

    A replica stays within one host if it fits there, because then no step waits for the network between hosts. Else it
    is held by as few hosts as it fits on. If it fits on none, the choice is the one with the least memory a device.
    """
    ranked = []
    for together in range(1, hosts.count + 1):
        if hosts.count % together:
            continue
        replicas = hosts.count // together
        of_replica = {"weights": weights, "buffer": buffer // replicas, "usable": usable}
        try:
            if together == 1:
                sizes = best_sizes(config, per_host, rows=rows // replicas, **of_replica)
            else:
                check_sizes(config, rows // replicas, sizes := {DATA: 1, MODEL: together * per_host})
        except UserError:
            continue
        too_large, *_ = _cost(config, sizes, **of_replica)
        ranked.append(((too_large, together), {DATA: sizes[DATA] * replicas, MODEL: sizes[MODEL]}))
    return min(ranked, key=lambda entry: entry[0])[1]


def best_sizes(
    config: ModelConfig, devices: int, *, rows: int, weights: int, buffer: int, usable: int | None
) -> dict[str, int]:
    """Sizes of the two axes with the least estimated time of a step.

    A step reads each device's share of the weights (1 / model) and of the buffer (1 / (data x model)). With a model
    axis it also sums over that axis twice a layer and once for the embedding, whose table is split by vocabulary. So
    small models are split by rows alone, and large ones by heads as far as these go.

    Args:
        config: the model's.
        devices: how many there are at most.
        rows: of the batch (B).
        weights: bytes of all weights.
        buffer: bytes of the whole KV buffer.
        usable: bytes of memory of a device; None if unknown, then everything fits.

    Returns:
        Sizes that divide model and rows evenly, and whose share of weights and buffer fits a device. If none fits,
        those with the least memory a device: the compiler decides what really fits.
    """
    ranked = []
    for data in range(1, devices + 1):
        for model in range(1, devices // data + 1):
            sizes = {DATA: data, MODEL: model}
            try:
                check_sizes(config, rows, sizes)
            except UserError:
                continue
            ranked.append((_cost(config, sizes, weights=weights, buffer=buffer, usable=usable), sizes))
    return min(ranked, key=lambda entry: entry[0])[1]


def _cost(
    config: ModelConfig, sizes: dict[str, int], *, weights: int, buffer: int, usable: int | None
) -> tuple[float, float, int]:
    """What sizes cost, to be compared as a tuple, least first: bytes a device if they don't fit, else 0; seconds a
    step;
    minus the devices in use."""
    data, model = sizes[DATA], sizes[MODEL]
    held = weights / model + buffer / (data * model)
    sums = 0 if model == 1 else 2 * config.n_layers + 1
    seconds = held / _BANDWIDTH + sums * _ALL_REDUCE
    too_large = usable is not None and held > _USABLE * usable
    return held if too_large else 0.0, seconds, -data * model


def weight_count(config: ModelConfig) -> int:
    """How many numbers a decoder's matrices hold; its vectors (norms, biases) are too small to matter here."""
    c = config
    attention = 2 * c.d_model * c.head_dim * (c.n_heads + c.n_kv_heads)
    tables = c.vocab_size * c.d_model * (1 if c.tied_head else 2)
    return tables + c.n_layers * (attention + 3 * c.d_model * c.d_ff)


def _memory(device: Any) -> int | None:
    """Bytes of a device's memory; None if it can't tell (a CPU can't)."""
    statistics = device.memory_stats() or {}
    return statistics.get("bytes_limit")


def mesh_text(mesh: Mesh | None, hosts: Hosts = ONE_HOST) -> str | None:
    """A mesh as ``--mesh`` takes it, such as 'data=2,model=4'.

    Args:
        mesh: of one replica, or None.
        hosts: those that share the run, with ``together`` set (``spread_over``).

    Returns:
        The sizes of the whole run's mesh: the data axis of all replicas together. None without a mesh.
    """
    if mesh is None:
        return None
    return ",".join(f"{axis}={size * (hosts.replicas if axis == DATA else 1)}" for axis, size in mesh.shape.items())


def spread_over(hosts: Hosts, mesh: Mesh | None) -> Hosts:
    """``hosts``, with ``together`` set to the number of hosts that ``mesh`` lies on.

    Args:
        hosts: those that share the run.
        mesh: of this host's replica, as ``settle_mesh`` returns it; None for a replica on one device of each host.
    """
    if mesh is None:
        return hosts
    return dataclasses.replace(hosts, together=len({device.process_index for device in mesh.devices.flat}))
