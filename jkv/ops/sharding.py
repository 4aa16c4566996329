"""Where arrays lie on a mesh of devices, by their axis letters (`jkv.axes`).

The mesh axis `data` divides the rows (B). The mesh axis `model` divides heads (N, K), feed-forward channels (F) and the
vocabulary (V). Every other array axis is whole on every device.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec

DATA, MODEL = "data", "model"
_AXIS_OF = {"B": DATA, "N": MODEL, "K": MODEL, "F": MODEL, "V": MODEL}


def partition_spec(letters: str, axes: tuple[str, ...] = (DATA, MODEL)) -> PartitionSpec:
    """The PartitionSpec of an array.

    Args:
        letters: the array's axis letters; any other character stands for an axis that isn't divided.
        axes: the mesh axes to divide over; array axes that belong to others aren't divided.
    """
    names = (_AXIS_OF.get(letter) for letter in letters)
    return PartitionSpec(*(name if name in axes else None for name in names))


def per_shard(
    function: Callable[..., Any], inputs: tuple[str | None, ...], outputs: tuple[str | None, ...]
) -> Callable[..., Any]:
    """A function that calls ``function`` on each device with the device's own shard of every argument.

    It is for kernels: XLA's partitioner can't divide their work, because it doesn't see into them.

    Args:
        function: the function; it returns a tuple.
        inputs: each argument's axis letters, None for an argument without arrays. An argument that is a pytree has the
            letters of each of its arrays.
        outputs: each result's axis letters, likewise.

    Returns:
        `jax.shard_map` of the function over those axes of the current mesh that no enclosing shard_map divides already.
        Where there is no mesh, or no such axis, ``function`` itself.
    """
    mesh = jax.sharding.get_abstract_mesh()
    free = tuple(name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind != AxisType.Manual)
    if mesh.size <= 1 or not free:
        return function
    spec_of = lambda letters: None if letters is None else partition_spec(letters, free)
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=tuple(map(spec_of, inputs)),
        out_specs=tuple(map(spec_of, outputs)),
        axis_names=set(free),
        check_vma=False,
    )


def over_heads(tree: Any) -> Any:
    """Add up over all devices of the mesh axis `model` what each has summed over its own heads.

    Args:
        tree: a pytree of arrays, computed within a function called by ``per_shard``.

    Returns:
        The pytree of sums; ``tree`` itself where heads aren't divided.
    """
    mesh = jax.sharding.get_abstract_mesh()
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    return jax.lax.psum(tree, MODEL) if kinds.get(MODEL) == AxisType.Manual and mesh.shape[MODEL] > 1 else tree


def divisible(letters: str, shape: tuple[int, ...]) -> str:
    """The axis letters, with `_` in place of each that the current mesh can't divide for an array of this shape.

    Args:
        letters: the array's axis letters.
        shape: the array's shape.

    Returns:
        ``letters`` with `_` for each axis whose size is no multiple of its mesh axis's (a batch of one row, say). Such
        an axis is whole on every device.
    """
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    fits = lambda letter, size: size % sizes.get(_AXIS_OF.get(letter), 1) == 0
    return "".join(a if fits(a, n) else "_" for a, n in zip(letters, shape, strict=True))
