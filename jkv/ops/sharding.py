"""Where arrays live on a mesh of devices, told by axis letters: rows (B) on `data`; heads (N, K), feed-forward (F) and
vocabulary (V) on `model`."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec

DATA, MODEL = "data", "model"
_AXIS_OF = {"B": DATA, "N": MODEL, "K": MODEL, "F": MODEL, "V": MODEL}


def partition_spec(letters: str, axes: tuple[str, ...] = (DATA, MODEL)) -> PartitionSpec:
    """The PartitionSpec of an array by its axis letters (`jkv.axes`), over the mesh axes named in ``axes``."""
    names = (_AXIS_OF.get(letter) for letter in letters)
    return PartitionSpec(*(name if name in axes else None for name in names))


def per_shard(
    function: Callable[..., Any], inputs: tuple[str | None, ...], outputs: tuple[str | None, ...]
) -> Callable[..., Any]:
    """``function`` called on each device with its own shard: for kernels, which the partitioner can't look into.

    inputs, outputs: the axis letters of each argument and result; None for an argument without an array. Outside a
    mesh, and on axes that an enclosing shard_map has taken already, it is ``function`` itself.
    """
    mesh = jax.sharding.get_abstract_mesh()
    free = tuple(name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind != AxisType.Manual)
    if mesh.size <= 1 or not free:
        return function
    place = lambda letters: None if letters is None else partition_spec(letters, free)
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=tuple(map(place, inputs)),
        out_specs=tuple(map(place, outputs)),
        axis_names=set(free),
        check_vma=False,
    )


def over_heads(tree: Any) -> Any:
    """Within a ``per_shard`` function: sums over the heads of one shard, added up over all of them."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    return jax.lax.psum(tree, MODEL) if kinds.get(MODEL) == AxisType.Manual and mesh.shape[MODEL] > 1 else tree


def divisible(letters: str, shape: tuple[int, ...]) -> str:
    """``letters`` with `_` in place of those whose axis of an array of this shape the mesh can't divide (one row of a
    batch, say): such an array is whole on every device."""
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    fits = lambda letter, size: size % sizes.get(_AXIS_OF.get(letter), 1) == 0
    return "".join(a if fits(a, n) else "_" for a, n in zip(letters, shape, strict=True))
