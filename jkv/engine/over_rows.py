"""Programs over a mesh: where a batch in flight lives, and a program that runs on every shard of its rows by itself.

Rows are independent, so a program runs on each shard of them as if they were all there are (`jax.shard_map`); only loop
conditions are agreed on (`jkv.engine.row_shards`). The `model` axis is left to XLA's partitioner, but for kernels
(`jkv.ops.sharding.per_shard`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jkv.engine.state import DecodeState
from jkv.models.config import ModelConfig
from jkv.ops.sharding import DATA, partition_spec


def state_shardings(state: DecodeState, config: ModelConfig, mesh: Mesh) -> DecodeState:
    """Where a batch in flight (of arrays or their shapes) lives: buffers and query rings by rows and heads, and so what
    belongs to one head's slots; all else by rows."""
    slots = state.cache.positions.shape
    metadata = "BLKS" if slots[2] == config.n_kv_heads else "B"

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        if (part := _buffer(path)) is not None:
            # Scales of an int8 buffer, [B, K, 1, S], are where its integers are.
            return NamedSharding(mesh, partition_spec("BTNH" if part == "queries" else "BKSH"))
        return NamedSharding(mesh, partition_spec(metadata if leaf.shape == slots else "B"))

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
