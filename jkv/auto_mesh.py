"""Which mesh a run gets: the one that is asked for, or (``--mesh auto``) the one whose steps should be shortest."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jkv.config import ModelConfig
from jkv.errors import UserError
from jkv.mesh import check_sizes, make_mesh, parse_mesh
from jkv.sharding import DATA, MODEL

AUTO = "auto"
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
    hosts: int = 1,
) -> Mesh | None:
    """The mesh that ``--mesh`` names, over the first of ``devices`` (this process's, unless given); None without it.

    weights, kv: 'int8' if they are that.  usable: bytes of a device, where it can't be asked itself.
    hosts: the words and the rows are of so many hosts; the mesh is one host's part. The data axis is shared by hosts,
    the model axis lies within each.

    Raises UserError for words that are no mesh, more devices than there are, and sizes that don't divide.
    """
    if words is None:
        return None
    there = list(jax.local_devices() if devices is None else devices)
    if words == AUTO:
        usable = _memory(there[0]) if usable is None else usable
        held = weight_count(config) * jnp.dtype(weights or dtype).itemsize
        buffer = config.kv_bytes(rows, slots, jnp.dtype(dtype).itemsize, kv)
        rows, buffer = rows // hosts, buffer // hosts
        sizes = best_sizes(config, len(there), rows=rows, weights=held, buffer=buffer, usable=usable)
    else:
        sizes = parse_mesh(words)
        check_sizes(config, rows, sizes)
        if hosts > 1:
            sizes = _of_one_host(words, sizes, hosts, len(there))
    count = sizes[DATA] * sizes[MODEL]
    if count > len(there):
        what = f"{words} asks for {count} devices, there are {len(there)}"
        raise UserError(what, where="--mesh", mend=f"let data x model be at most {len(there)}")
    return make_mesh(there[:count], sizes)


def _of_one_host(words: str, sizes: dict[str, int], hosts: int, devices: int) -> dict[str, int]:
    """Raises UserError for a mesh whose model axis would cross hosts, or that has too many devices for them."""
    data, model = sizes[DATA], sizes[MODEL]
    if model > devices:
        what = f"model={model} would cross hosts, which have {devices} devices each: only rows are shared by hosts"
        raise UserError(what, where="--mesh", mend=f"let model be at most {devices}, or take hosts with more devices")
    if data % hosts:
        what = f"data={data} can't be shared by {hosts} hosts evenly"
        raise UserError(what, where="--mesh", mend=f"give a data axis that is a multiple of {hosts}")
    if data // hosts * model > devices:
        what = f"{words} asks for {data // hosts * model} devices of each of {hosts} hosts, which have {devices}"
        raise UserError(what, where="--mesh", mend=f"let data x model be at most {hosts * devices}")
    return {DATA: data // hosts, MODEL: model}


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
            held = weights / model + buffer / (data * model)
            adds = 0 if model == 1 else 2 * config.n_layers + 1
            seconds = held / _BANDWIDTH + adds * _ALL_REDUCE
            too_large = usable is not None and held > _USABLE * usable
            ranked.append(((held if too_large else 0.0, seconds, -data * model), sizes))
    return min(ranked, key=lambda entry: entry[0])[1]


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


def mesh_words(mesh: Mesh | None, hosts: int = 1) -> str | None:
    """'data=2,model=4', as ``--mesh`` takes it. hosts: ``mesh`` is the part of one of so many."""
    if mesh is None:
        return None
    return ",".join(f"{axis}={size * (hosts if axis == DATA else 1)}" for axis, size in mesh.shape.items())
