"""A mesh of devices: what ``--mesh`` says, the mesh made of it, and whether a model and its rows divide among them.

Two axes. On `data` lie the rows: each device holds whole rows. On `model` lie heads, feed-forward and vocabulary: plain
tensor parallelism.
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
    """'data=1,model=8' as sizes; an axis left out is 1. Raises UserError if it isn't that, or not all ``devices``."""
    sizes = {DATA: 1, MODEL: 1}
    found: set[str] = set()
    for word in text.split(","):
        match = re.fullmatch(r"\s*(data|model)=([1-9][0-9]{0,5})\s*", word)
        if match is None or match[1] in found:
            raise UserError(
                f"{text!r} is no mesh", where="--mesh", mend="write data=ROWS,model=HEADS, as in data=1,model=8"
            )
        found.add(match[1])
        sizes[match[1]] = int(match[2])
    count = sizes[DATA] * sizes[MODEL]
    if devices is not None and count != devices:
        what = f"{text} asks for {count} devices, there are {devices}"
        raise UserError(what, where="--mesh", mend=f"let data x model be {devices}")
    return sizes


def make_mesh(devices: Sequence[Any], sizes: dict[str, int]) -> Mesh:
    """A mesh over ``devices``, neighbours along `model` first: that axis talks at every layer."""
    return Mesh(np.array(devices).reshape(sizes[DATA], sizes[MODEL]), (DATA, MODEL))


def check_mesh(config: ModelConfig, rows: int, mesh: Mesh | AbstractMesh) -> None:
    """Raise UserError when a size of the model or the batch doesn't divide among the devices of its axis.

    More devices on `model` than KV heads are refused, too: sharing a head would mean a copy of its slots on each device
    that has a part in it, and those devices serve more rows on `data`.
    """
    check_sizes(config, rows, dict(mesh.shape))


def check_sizes(config: ModelConfig, rows: int, sizes: Mapping[str, int]) -> None:
    """``check_mesh`` for the sizes of its axes."""
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
    """Every leaf on every device: a policy's parameters, flags, a prompt."""
    return jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), tree)
