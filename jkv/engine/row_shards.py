"""Rows spread over the `data` axis of a mesh: what one shard of them has to agree on with the others, and nothing else.

The decode program runs on each shard of rows as if they were all there are (`jkv.engine.over_rows`). Two things are
common to all shards. Loops must make the same number of turns everywhere, because all devices take part in the
tensor-parallel sums inside them: a shard that has nothing left to do repeats without effect. And a prompt is read by
every shard, but written only by the one that owns its row.
Outside such a mesh every function here is the identity, so single-device programs are what they would be without it.
"""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType

from jkv.ops.sharding import DATA


def spread() -> bool:
    """Whether code traced now sees only its own shard of the rows."""
    mesh = jax.sharding.get_abstract_mesh()
    if DATA not in mesh.axis_names or mesh.shape[DATA] == 1:
        return False
    return mesh.axis_types[mesh.axis_names.index(DATA)] == AxisType.Manual


def anywhere(*flags: jax.Array) -> tuple[jax.Array, ...]:
    """Each flag (bool scalars), or whether it holds on any shard: one tiny maximum for all of them."""
    if not spread():
        return flags
    return tuple(jax.lax.pmax(jnp.stack(flags).astype(jnp.int32), DATA) > 0)


def own_row(row: jax.Array, rows: int) -> tuple[jax.Array, jax.Array | None]:
    """A row of the batch as one of this shard's ``rows``, and whether it is this shard's; None when all rows are here.

    Other shards get one of their own rows: what they would write there, ``write_row`` drops.
    """
    if not spread():
        return row, None
    here = row - jax.lax.axis_index(DATA) * rows
    return jnp.clip(here, 0, rows - 1), (here >= 0) & (here < rows)


def of_owner(value: jax.Array, owned: jax.Array | None) -> jax.Array:
    """The owner's value (an integer or bool scalar) on every shard."""
    if owned is None:
        return value
    return jax.lax.psum(jnp.where(owned, value, 0).astype(jnp.int32), DATA).astype(value.dtype)


def write_row(leaf: jax.Array, value: jax.Array, row: jax.Array, owned: jax.Array | None = None) -> jax.Array:
    """``leaf`` with ``value`` [1, ...] at ``row`` (its first places, where value is smaller); only if ``mine``."""
    start = (row.astype(jnp.int32), *(jnp.int32(0) for _ in leaf.shape[1:]))
    if owned is not None:
        value = jnp.where(owned, value, jax.lax.dynamic_slice(leaf, start, value.shape))
    return jax.lax.dynamic_update_slice(leaf, value, start)
