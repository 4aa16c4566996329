"""Rows sharded over the `data` axis of a mesh: the few places where a shard has to know of the others.

Each shard of the rows runs a program as if it had the whole batch (`jkv.engine.over_rows`), with two exceptions:

- Loops must make the same number of turns on all shards, because all devices take part in the tensor-parallel sums
  inside them. A shard with nothing left to do goes round without effect.
- A prompt is read on all shards, but only the shard that owns its row writes it to the buffer.

Where rows are not sharded, each function here returns its argument or does the plain thing, so programs for one device
are the same as without this module.
"""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jaxtyping import Shaped

from jkv.axes import Array, Bool, Int
from jkv.ops.sharding import DATA


def rows_are_sharded() -> bool:
    """Whether the code being traced sees only one shard of the rows."""
    mesh = jax.sharding.get_abstract_mesh()
    if DATA not in mesh.axis_names or mesh.shape[DATA] == 1:
        return False
    return mesh.axis_types[mesh.axis_names.index(DATA)] == AxisType.Manual


def on_any_shard(*flags: Bool[Array, ""]) -> tuple[Bool[Array, ""], ...]:
    """For each flag, whether it holds on any shard of the rows. All flags go into one all-reduce."""
    if not rows_are_sharded():
        return flags
    return tuple(jax.lax.pmax(jnp.stack(flags).astype(jnp.int32), DATA) > 0)


def own_row(row: Int[Array, ""], rows: int) -> tuple[Int[Array, ""], Bool[Array, ""] | None]:
    """Find a row of the whole batch among this shard's rows.

    Args:
        row: index in the whole batch.
        rows: how many rows a shard has.

    Returns:
        The index among this shard's rows, and whether the shard owns the row: None where rows are not sharded. A shard
        that doesn't own it gets the index of another row, and must give the second value to ``write_row``, which then
        writes nothing.
    """
    if not rows_are_sharded():
        return row, None
    here = row - jax.lax.axis_index(DATA) * rows
    return jnp.clip(here, 0, rows - 1), (here >= 0) & (here < rows)


def from_owner(value: Shaped[Array, ""], owned: Bool[Array, ""] | None) -> Shaped[Array, ""]:
    """On every shard, the value that the row's owner has.

    Args:
        value: an integer or a bool, this shard's.
        owned: whether this shard owns the row (`own_row`).
    """
    if owned is None:
        return value
    return jax.lax.psum(jnp.where(owned, value, 0).astype(jnp.int32), DATA).astype(value.dtype)


def write_row(
    leaf: Shaped[Array, "B *rest"],
    value: Shaped[Array, "1 *part"],
    row: Int[Array, ""],
    owned: Bool[Array, ""] | None = None,
) -> Shaped[Array, "B *rest"]:
    """``leaf`` with ``value`` at ``row``.

    Args:
        leaf: an array of all rows.
        value: one row; it may be shorter than ``leaf`` on the other axes and then fills their first places.
        row: index in ``leaf``.
        owned: whether to write at all; None: yes.
    """
    start = (row.astype(jnp.int32), *(jnp.int32(0) for _ in leaf.shape[1:]))
    if owned is not None:
        value = jnp.where(owned, value, jax.lax.dynamic_slice(leaf, start, value.shape))
    return jax.lax.dynamic_update_slice(leaf, value, start)
