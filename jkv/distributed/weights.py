"""Where a decoder's weights lie on a mesh, and in which layout.

The axis letters of a weight decide (`jkv.models.letters`): N, K, F and V are split along the mesh's `model` axis, the
rest is whole on every device (`jkv.ops.sharding`).
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.layout import Format, Layout
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from jkv.models.letters import weight_letters
from jkv.ops.sharding import partition_spec


def weight_shardings(weights: Any, mesh: Mesh | AbstractMesh) -> Any:
    """A sharding for each of a decoder's weights.

    Args:
        weights: an nnx.State, of arrays or of their shapes.
        mesh: of devices, or of sizes alone.

    Returns:
        A tree like ``weights``, of NamedSharding.
    """

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        """The sharding of one weight, or of the integers or the scales of an int8 weight."""
        dotted, value, part = jax.tree_util.keystr(path, simple=True, separator=".").partition(".value")
        letters = weight_letters(dotted)
        assert value, dotted
        assert len(letters) == len(leaf.shape), (dotted, leaf.shape)
        if part == ".scale":  # an int8 weight's scales have size 1 on the axes that are contracted
            letters = "".join(a if n > 1 else "_" for a, n in zip(letters, leaf.shape, strict=True))
        return NamedSharding(mesh, partition_spec(letters))

    return jax.tree_util.tree_map_with_path(place, weights)


def place_weights(mesh: Mesh) -> Callable[[str, tuple[int, ...]], NamedSharding]:
    """For ``jkv.load.load``, which reads each weight straight to where it lies.

    Returns:
        A function from a weight's dotted path and its shape (not used here) to its sharding.
    """
    return lambda path, shape: NamedSharding(mesh, partition_spec(weight_letters(path)))


def auto_formats(weights: Any, mesh: Mesh) -> Any:
    """For ``jkv.engine.over_rows.lower_over_rows``: each weight's sharding, with a layout that the compiler chooses.

    The weights then have to be moved to the compiled program's ``input_formats`` before it is called. By default an
    array on a TPU is laid out so that little of it is padding. A program that needs another layout (for the head, where
    a device's share of the vocabulary is not a multiple of 128) would copy the array before every call.

    Args:
        weights: an nnx.State, of arrays or of their shapes.
        mesh: the mesh they lie on.

    Returns:
        A tree like ``weights``, of Format.
    """
    return jax.tree.map(lambda place: Format(Layout.AUTO, place), weight_shardings(weights, mesh))
