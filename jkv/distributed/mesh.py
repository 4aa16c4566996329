"""A mesh of devices: reading ``--mesh``, making the mesh, and checking that a model and its rows divide among it.

A mesh has two axes. Along `data` the rows of the batch are split: each device holds whole rows. Along `model` heads,
feed-forward and vocabulary are split: plain tensor parallelism. `jkv.distributed.choose_mesh` decides which mesh a run
gets, `jkv.distributed.weights` where weights lie on it, `jkv.engine.over_rows` where a batch lies.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from jkv.errors import UserError
from jkv.models.config import ModelConfig
from jkv.ops.sharding import DATA, MODEL


def parse_mesh(text: str, devices: int | None = None) -> dict[str, int]:
    """The sizes of the two axes, from text such as 'data=1,model=8'.

    Args:
        text: as ``--mesh`` takes it; an axis left out is 1.
        devices: how many devices the mesh must have; None for any number.

    Raises:
        UserError: the text can't be read, or asks for another number of devices.
    """
    sizes = {DATA: 1, MODEL: 1}
    found: set[str] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(data|model)=([1-9][0-9]{0,5})\s*", part)
        if match is None or match[1] in found:
            raise UserError(
                f"{text!r} is not a mesh", where="--mesh", mend="write data=ROWS,model=HEADS, as in data=1,model=8"
            )
        found.add(match[1])
        sizes[match[1]] = int(match[2])
    count = sizes[DATA] * sizes[MODEL]
    if devices is not None and count != devices:
        what = f"{text} asks for {count} devices, there are {devices}"
        raise UserError(what, where="--mesh", mend=f"let data x model be {devices}")
    return sizes


def make_mesh(devices: Sequence[Any], sizes: Mapping[str, int]) -> Mesh:
    """A mesh over ``devices``: as many as the product of the two sizes.

    Consecutive devices lie along `model`, because that axis communicates at every layer and neighbours are fastest.
    """
    return Mesh(np.array(devices).reshape(sizes[DATA], sizes[MODEL]), (DATA, MODEL))


def check_mesh(config: ModelConfig, rows: int, mesh: Mesh | AbstractMesh) -> None:
    """Refuse a mesh that a model or its batch can't be divided among.

    A `model` axis with more devices than KV heads is refused, too. Devices that share a head would each hold a copy of
    its slots; on the `data` axis the same devices serve more rows.

    Args:
        config: the model's.
        rows: of the batch (B).
        mesh: of devices, or of sizes alone.

    Raises:
        UserError: heads, feed-forward channels, vocabulary or rows don't divide among the devices of their axis.
    """
    check_sizes(config, rows, dict(mesh.shape))


def check_sizes(config: ModelConfig, rows: int, sizes: Mapping[str, int]) -> None:
    """``check_mesh`` for a mesh given by the sizes of its axes, 'data' and 'model'. Raises UserError as it does."""
    data, model = sizes[DATA], sizes[MODEL]
    parts = (
        (config.n_kv_heads, "KV heads"),
        (config.n_heads, "query heads"),
        (config.d_ff, "feed-forward channels"),
        (config.vocab_size, "tokens of vocabulary"),
    )
    for size, name in parts:
        if size % model:
            what = f"model={model} can't share the model's {size} {name} evenly"
            raise UserError(what, where="--mesh", mend=f"give a model axis that divides {size}, and more to data")
    if rows % data:
        what = f"data={data} can't share {rows} rows evenly"
        raise UserError(what, where="--mesh", mend=f"give a --batch-size that is a multiple of {data}")


def everywhere(tree: Any, mesh: Mesh) -> Any:
    """A sharding for each leaf of ``tree`` that puts it whole on every device: for a policy's parameters, flags, a
    prompt."""
    return jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), tree)
