"""Where a decoder's weights live on a mesh, and in which layout."""

from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.layout import Format, Layout
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from jkv.models.letters import weight_letters
from jkv.ops.sharding import partition_spec


def weight_shardings(weights: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Where each of a decoder's weights (an nnx.State, of arrays or their shapes) lives."""

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        dotted, value, part = jax.tree_util.keystr(path, simple=True, separator=".").partition(".value")
        letters = weight_letters(dotted)
        assert value, dotted
        assert len(letters) == len(leaf.shape), (dotted, leaf.shape)
        if part == ".scale":  # of an int8 weight: one place on the axes that are contracted
            letters = "".join(a if n > 1 else "_" for a, n in zip(letters, leaf.shape, strict=True))
        return NamedSharding(mesh, partition_spec(letters))

    return jax.tree_util.tree_map_with_path(place, weights)


def place_weights(mesh: Mesh) -> Callable[[str, tuple[int, ...]], NamedSharding]:
    """For ``jkv.load.load``: where a weight lives, by its dotted path and shape."""
    return lambda path, shape: NamedSharding(mesh, partition_spec(weight_letters(path)))


def auto_formats(weights: Any, mesh: Mesh) -> Any:
    """For ``lower_over_rows``: every weight in its place, in the layout that the compiler likes best. Weights then have
    to be put in the compiled program's ``input_formats``.

    By default the TPU's lays out an array so that little is padded, and a program that wants it otherwise (the head,
    where a device's share of the vocabulary is no multiple of 128) copies it before every call.
    """
    return jax.tree.map(lambda place: Format(Layout.AUTO, place), weight_shardings(weights, mesh))
