"""Programs over a mesh: where a batch in flight lives, and how a program runs on each shard of its rows.

Rows are independent, so on the `data` axis each device runs the program on its own rows as if there were no others
(`jax.shard_map`); what shards have to agree on is in `jkv.engine.row_shards`. The `model` axis is left to XLA's
partitioner, except for kernels, which it can't divide (`jkv.ops.sharding.per_shard`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jkv.engine.state import DecodeState
from jkv.models.config import ModelConfig
from jkv.ops.sharding import DATA, partition_spec


def state_shardings(state: DecodeState, config: ModelConfig, mesh: Mesh) -> DecodeState:
    """The sharding of every array of a batch in flight.

    Buffers and rings of queries are divided by rows and heads. So is metadata with one entry a slot, where every head
    has a keep set of its own. All else is divided by rows.

    Args:
        state: the batch; arrays or their shapes.
        config: the model's.
        mesh: with axes `data` and `model`.

    Returns:
        A state with a NamedSharding in place of each array.
    """
    slots = state.cache.positions.shape
    per_slot = "BLKS" if slots[2] == config.n_kv_heads else "B"

    def place(path: tuple[Any, ...], leaf: jax.Array | jax.ShapeDtypeStruct) -> NamedSharding:
        """The sharding of one array."""
        if (part := _buffer(path)) is not None:
            # The scales of an int8 buffer, [B, K, 1, S], are divided like its integers.
            return NamedSharding(mesh, partition_spec("BTNH" if part == "queries" else "BKSH"))
        return NamedSharding(mesh, partition_spec(per_slot if leaf.shape == slots else "B"))

    return jax.tree_util.tree_map_with_path(place, state)


def _buffer(path: tuple[Any, ...]) -> str | None:
    """'k', 'v' or 'queries' if the path leads into a layer's buffer, else None."""
    names = [key.name for key in path if isinstance(key, jax.tree_util.GetAttrKey)]
    return names[2] if names[:2] == ["cache", "layers"] else None


def state_formats(state: DecodeState, config: ModelConfig, mesh: Mesh) -> DecodeState:
    """``state_shardings``, and for keys and values the layout as well: a head's slots one after the other, as kernels
    read them.

    The layout that the TPU compiler chooses by default has rows innermost where S is no multiple of 8 and B is. Every
    call would then begin and end with a copy of the buffer.

    Returns:
        A state with a Format (keys and values) or a NamedSharding in place of each array.
    """
    shardings = state_shardings(state, config, mesh)
    row_major = lambda path, place: Format(Layout((0, 1, 2, 3)), place) if _buffer(path) in ("k", "v") else place
    return jax.tree_util.tree_map_with_path(row_major, shardings)


def over_rows(function: Callable[..., Any], mesh: Mesh, outputs: str) -> Callable[..., Any]:
    """``function``, run on each shard of the rows by itself.

    Args:
        function: ``(weights, state, *rest) -> (state, *others)``.
        mesh: with axes `data` and `model`.
        outputs: a letter for each of ``others``: 'B' if its leading axis is rows, '-' if it is the same on all shards.
    """
    if mesh.shape[DATA] == 1:
        return function
    rows, same = PartitionSpec(DATA), PartitionSpec()

    def sharded(weights: nnx.State, state: DecodeState, *rest: Any) -> tuple[Any, ...]:
        """``function`` on every shard; ``rest`` is the same on all."""
        return jax.shard_map(
            function,
            mesh=mesh,
            in_specs=(same, rows, *(same for _ in rest)),
            out_specs=(rows, *(rows if kind == "B" else same for kind in outputs)),
            axis_names={DATA},
            check_vma=False,
        )(weights, state, *rest)

    return sharded


def lower_over_rows(
    function: Callable[..., Any],
    mesh: Mesh,
    config: ModelConfig,
    arguments: Sequence[Any],
    outputs: str,
    formats: nnx.State | None = None,
) -> jax.stages.Lowered:
    """``over_rows`` of ``function``, jitted and lowered. The state is donated, and comes out in ``state_formats``.

    Args:
        function: ``(weights, state, *rest) -> (state, *others)``.
        mesh: with axes `data` and `model`.
        config: the model's.
        arguments: weights, state and the rest: arrays or their shapes, with their shardings.
        outputs: as for ``over_rows``.
        formats: layouts and shardings of the weights. `jkv.distributed.weights.auto_formats` lets the compiler choose
            the layouts; None takes the weights as they are.
    """
    weights, state, *rest = arguments
    in_place = state_formats(state, config, mesh)
    others = (NamedSharding(mesh, PartitionSpec(DATA) if kind == "B" else PartitionSpec()) for kind in outputs)
    run = jax.jit(
        over_rows(function, mesh, outputs),
        donate_argnums=1,
        in_shardings=(formats, in_place, *(None for _ in rest)),
        out_shardings=(in_place, *others),
    )
    with jax.set_mesh(mesh):
        return run.lower(weights, state, *rest)
