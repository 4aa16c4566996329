"""Which mesh a run gets: the one that is asked for, or (``--mesh auto``) the one whose steps should be shortest."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jkv.distributed.hosts import Hosts, rows_per_replica
from jkv.distributed.mesh import check_sizes, make_mesh, parse_mesh
from jkv.errors import UserError
from jkv.models.config import ModelConfig
from jkv.ops.sharding import DATA, MODEL

AUTO = "auto"
ALONE = Hosts()
# Round numbers, between those of TPU generations: they only have to rank meshes. Bytes/s that a device reads, and
# seconds that the devices of the model axis take to add up a layer's small contributions.
_BANDWIDTH, _ALL_REDUCE = 1e12, 10e-6
_USABLE = 0.9  # of a device's memory: the rest is for temporaries


def settle_mesh(
    words: str | None,
    config: ModelConfig,
    *,
    rows: int,
    slots: int,
    dtype: Any,
    weights: str | None = None,
    kv: str | None = None,
    devices: Sequence[Any] | None = None,
    usable: int | None = None,
    hosts: Hosts = ALONE,
) -> Mesh | None:
    """The mesh that ``--mesh`` names, over the first of ``devices`` (all of the run's, unless given); None without it.

    weights, kv: 'int8' if they are that.  usable: bytes of a device, where it can't be asked itself.
    hosts: those that share the devices. The words and the rows are of all of them, the mesh is that of this host's
    replica: its own devices, or, where `model` is more than a host has, those of it and its neighbours.

    Raises UserError for words that are no mesh, more devices than there are, and sizes that don't divide.
    """
    if words is None:
        return None
    there = list(jax.devices() if devices is None else devices)
    each = len(there) // hosts.count
    if words == AUTO:
        if usable is None:  # only a device of one's own can be asked
            usable = _memory(next((d for d in there if d.process_index == hosts.index), there[0]))
        held = weight_count(config) * jnp.dtype(weights or dtype).itemsize
        buffer = config.kv_bytes(rows, slots, jnp.dtype(dtype).itemsize, kv)
        sizes = _best_for_hosts(config, each, rows=rows, weights=held, buffer=buffer, usable=usable, hosts=hosts)
    else:
        sizes = parse_mesh(words)
        check_sizes(config, rows, sizes)
    count = sizes[DATA] * sizes[MODEL]
    if hosts.count == 1:
        if count > each:
            what = f"{words} asks for {count} devices, there are {each}"
            raise UserError(what, where="--mesh", mend=f"let data x model be at most {each}")
        return make_mesh(there[:count], sizes)
    hosts = _spread(words, sizes, hosts, each)
    rows_per_replica(rows, hosts)
    mine = [device for device in there if device.process_index // hosts.together == hosts.replica]
    return make_mesh(mine[: count // hosts.replicas], {DATA: sizes[DATA] // hosts.replicas, MODEL: sizes[MODEL]})


def _spread(words: str, sizes: dict[str, int], hosts: Hosts, each: int) -> Hosts:
    """``hosts``, of ``each`` devices, with how many of them hold a replica together.

    Raises UserError for a mesh that they can't share evenly, or that has too many devices for them.
    """
    data, model = sizes[DATA], sizes[MODEL]
    count = hosts.count
    if model > each and (model % each or count % (model // each)):
        what = f"model={model} can't be held by whole hosts of {each} devices each, of which there are {count}"
        raise UserError(what, where="--mesh", mend=f"give a multiple of {each} that divides {count * each}")
    hosts = dataclasses.replace(hosts, together=max(1, model // each))
    groups = f"{count} hosts" if hosts.together == 1 else f"{hosts.replicas} groups of {hosts.together} hosts"
    if data % hosts.replicas:
        what = f"data={data} can't be shared by {groups} evenly"
        raise UserError(what, where="--mesh", mend=f"give a data axis that is a multiple of {hosts.replicas}")
    asked, have = data // hosts.replicas * model, hosts.together * each
    if asked > have:
        what = f"{words} asks for {asked} devices of each of {groups}, which have {have}"
        raise UserError(what, where="--mesh", mend=f"let data x model be at most {count * each}")
    return hosts


def _best_for_hosts(
    config: ModelConfig, each: int, *, rows: int, weights: int, buffer: int, usable: int | None, hosts: Hosts
) -> dict[str, int]:
    """``best_sizes`` for the devices of all hosts: within a host if it fits there, as hosts have to say nothing to each
    other then; else over as few hosts as hold it. If none do, the least memory."""
    ranked = []
    for together in range(1, hosts.count + 1):
        if hosts.count % together:
            continue
        replicas = hosts.count // together
        ours = {"weights": weights, "buffer": buffer // replicas, "usable": usable}
        try:
            if together == 1:
                sizes = best_sizes(config, each, rows=rows // replicas, **ours)
            else:
                check_sizes(config, rows // replicas, sizes := {DATA: 1, MODEL: together * each})
        except UserError:
            continue
        too_large, *_ = _cost(config, sizes, **ours)
        ranked.append(((too_large, together), {DATA: sizes[DATA] * replicas, MODEL: sizes[MODEL]}))
    return min(ranked, key=lambda entry: entry[0])[1]


def best_sizes(
    config: ModelConfig, devices: int, *, rows: int, weights: int, buffer: int, usable: int | None
) -> dict[str, int]:
    """Sizes of the two axes for so many bytes of weights and of buffer: the least estimated time of a step among those
    that divide evenly and whose share of both fits into ``usable`` bytes a device. If none fits, the least memory: the
    compiler has the last word on what fits.

    A step reads its share of the weights (1 / model) and of the buffer (1 / (data x model)), and with a model axis adds
    up twice a layer. So small models are spread by rows alone, and large ones by heads as far as they go.
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
    """Less is better: bytes of a device if they are too many, else 0; seconds of a step; unused devices."""
    data, model = sizes[DATA], sizes[MODEL]
    held = weights / model + buffer / (data * model)
    adds = 0 if model == 1 else 2 * config.n_layers + 1
    seconds = held / _BANDWIDTH + adds * _ALL_REDUCE
    too_large = usable is not None and held > _USABLE * usable
    return held if too_large else 0.0, seconds, -data * model


def weight_count(config: ModelConfig) -> int:
    """Numbers in a decoder's matrices; its vectors are too small to matter here."""
    c = config
    attention = 2 * c.d_model * c.head_dim * (c.n_heads + c.n_kv_heads)
    tables = c.vocab_size * c.d_model * (1 if c.tied_head else 2)
    return tables + c.n_layers * (attention + 3 * c.d_model * c.d_ff)


def _memory(device: Any) -> int | None:
    """Bytes of a device, if it says so (a CPU doesn't)."""
    statistics = device.memory_stats() or {}
    return statistics.get("bytes_limit")


def mesh_text(mesh: Mesh | None, hosts: Hosts = ALONE) -> str | None:
    """'data=2,model=4', as ``--mesh`` takes it. hosts: ``mesh`` is that of one of their replicas."""
    if mesh is None:
        return None
    return ",".join(f"{axis}={size * (hosts.replicas if axis == DATA else 1)}" for axis, size in mesh.shape.items())


def spread_over(hosts: Hosts, mesh: Mesh | None) -> Hosts:
    """``hosts``, with how many of them ``mesh`` lies on."""
    if mesh is None:
        return hosts
    return dataclasses.replace(hosts, together=len({device.process_index for device in mesh.devices.flat}))
