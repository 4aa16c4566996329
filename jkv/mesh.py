"""The decode program on a mesh of devices: which array lives where, and the programs over it.

Two axes. On `data` lie the rows: each device holds whole rows, and as rows are independent the program runs on each
shard of them by itself (`jax.shard_map`); only loop conditions are agreed on (`jkv.shards`). On `model` lie heads,
feed-forward and vocabulary: plain tensor parallelism, left to XLA's partitioner, but for kernels (`per_shard`).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental.layout import Format, Layout
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from jkv.config import ModelConfig
from jkv.errors import UserError
from jkv.models.letters import weight_letters
from jkv.sharding import DATA, MODEL, spec
from jkv.state import DecodeState


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


def weight_shardings(weights: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Where each of a decoder's weights (an nnx.State, of arrays or their shapes) lives."""

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        dotted, value, part = jax.tree_util.keystr(path, simple=True, separator=".").partition(".value")
        letters = weight_letters(dotted)
        assert value, dotted
        assert len(letters) == len(leaf.shape), (dotted, leaf.shape)
        if part == ".scale":  # of an int8 weight: one place on the axes that are contracted
            letters = "".join(a if n > 1 else "_" for a, n in zip(letters, leaf.shape, strict=True))
        return NamedSharding(mesh, spec(letters))

    return jax.tree_util.tree_map_with_path(place, weights)


def place_weights(mesh: Mesh) -> Callable[[str, tuple[int, ...]], NamedSharding]:
    """For ``jkv.load.load``: where a weight lives, by its dotted path and shape."""
    return lambda path, shape: NamedSharding(mesh, spec(weight_letters(path)))


def state_shardings(state: DecodeState, config: ModelConfig, mesh: Mesh) -> DecodeState:
    """Where a batch in flight (of arrays or their shapes) lives: buffers and query rings by rows and heads, and so what
    belongs to one head's slots; all else by rows."""
    slots = state.cache.positions.shape
    books = "BLKS" if slots[2] == config.n_kv_heads else "B"

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        if (part := _buffer(path)) is not None:
            # Scales of an int8 buffer, [B, K, 1, S], are where its integers are.
            return NamedSharding(mesh, spec("BTNH" if part == "queries" else "BKSH"))
        return NamedSharding(mesh, spec(books if leaf.shape == slots else "B"))

    return jax.tree_util.tree_map_with_path(place, state)


def _buffer(path: tuple[Any, ...]) -> str | None:
    """'k', 'v' or 'queries' for a leaf of a layer's buffer."""
    names = [key.name for key in path if isinstance(key, jax.tree_util.GetAttrKey)]
    return names[2] if names[:2] == ["cache", "layers"] else None


def state_formats(state: DecodeState, config: ModelConfig, mesh: Mesh) -> DecodeState:
    """``state_shardings``, with the buffers' layout: slots of a head one after the other, as kernels read them.

    By default the TPU's lays out a buffer by rows instead where S is no multiple of 8 and B is, and every call would
    begin and end with a copy of the buffer.
    """
    places = state_shardings(state, config, mesh)
    slot_by_slot = lambda path, place: Format(Layout((0, 1, 2, 3)), place) if _buffer(path) in ("k", "v") else place
    return jax.tree_util.tree_map_with_path(slot_by_slot, places)


def everywhere(tree: Any, mesh: Mesh) -> Any:
    """Every leaf on every device: a policy's parameters, flags, a prompt."""
    return jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), tree)


def over_rows(function: Callable[..., Any], mesh: Mesh, outputs: str) -> Callable[..., Any]:
    """``function(weights, state, *rest) -> (state, *others)`` on every shard of the rows by itself.

    outputs: for each of the others, 'B' if it has a row each, '-' if it is the same on all shards.
    """
    if mesh.shape[DATA] == 1:
        return function
    rows, same = PartitionSpec(DATA), PartitionSpec()

    def shared(weights: Any, state: DecodeState, *rest: Any) -> Any:
        return jax.shard_map(
            function,
            mesh=mesh,
            in_specs=(same, rows, *(same for _ in rest)),
            out_specs=(rows, *(rows if kind == "B" else same for kind in outputs)),
            axis_names={DATA},
            check_vma=False,
        )(weights, state, *rest)

    return shared


def lower_over_rows(
    function: Callable[..., Any],
    mesh: Mesh,
    config: ModelConfig,
    arguments: Sequence[Any],
    outputs: str,
    formats: Any = None,
) -> jax.stages.Lowered:
    """``over_rows`` of ``function``, jitted and lowered; the state is donated and stays where it is.

    arguments: weights, state (in ``state_formats``) and the rest: arrays or their shapes, each where it lives.
    formats: the weights' layouts; ``auto_formats`` leaves them to the compiler, None takes them as they come.
    """
    weights, state, *rest = arguments
    kept = state_formats(state, config, mesh)
    others = (NamedSharding(mesh, PartitionSpec(DATA) if kind == "B" else PartitionSpec()) for kind in outputs)
    run = jax.jit(
        over_rows(function, mesh, outputs),
        donate_argnums=1,
        in_shardings=(formats, kept, *(None for _ in rest)),
        out_shardings=(kept, *others),
    )
    with jax.set_mesh(mesh):
        return run.lower(weights, state, *rest)


def auto_formats(weights: Any, mesh: Mesh) -> Any:
    """For ``lower_over_rows``: every weight in its place, in the layout that the compiler likes best. Weights then have
    to be put in the compiled program's ``input_formats``.

    By default the TPU's lays out an array so that little is padded, and a program that wants it otherwise (the head,
    where a device's share of the vocabulary is no multiple of 128) copies it before every call.
    """
    return jax.tree.map(lambda place: Format(Layout.AUTO, place), weight_shardings(weights, mesh))
