"""A weight of the Decoder that is spread over devices: this process reads only the parts that its own devices hold."""

import math
from collections.abc import Callable, Sequence

import jax
import numpy as np

from converters.tables import Part, Row
from jkv.models.config import ModelConfig


def sharded_leaf(
    read: Callable[[Sequence[slice]], np.ndarray], row: Row, config: ModelConfig, sharding: jax.sharding.Sharding
) -> jax.Array:
    """A leaf of the Decoder, spread over devices.

    What this process's devices hold is read at once if it is one box of the tensor, else device by device. Beside the
    devices' own memory no more than such a box is held at a time.

    Args:
        read: reads a box (a slice for each axis) of the tensor in the file.
        row: which leaf it is, and how tensor and leaf correspond.
        config: the model's.
        sharding: which device holds which part of the leaf.
    """
    shape = row.leaf_shape(config)
    parts = {
        device: row.part(index, config)
        for device, index in sharding.addressable_devices_indices_map(shape).items()
        if index is not None
    }
    distinct = list({tuple(part.items()): part for part in parts.values()}.values())
    union = {
        letter: (min(p[letter][0] for p in distinct), max(p[letter][1] for p in distinct)) for letter in distinct[0]
    }
    boxes = [union] if _volume(union) == sum(map(_volume, distinct)) else distinct
    arrays = []
    for box in boxes:
        leaf = row.to_leaf(read(row.file_box(box, config)), config, box)
        for device, part in parts.items():
            if all(box[x][0] <= start and stop <= box[x][1] for x, (start, stop) in part.items()):
                cut = tuple(slice(part[x][0] - box[x][0], part[x][1] - box[x][0]) for x in part)
                arrays.append(jax.device_put(leaf[cut], device))
        jax.block_until_ready(arrays)
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


def _volume(part: Part) -> int:
    """How many elements a part has."""
    return math.prod(stop - start for start, stop in part.values())
