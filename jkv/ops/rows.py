"""Projections and sums whose result for a row doesn't depend on the other rows: on CPU in float32, to the bit.

Floating-point sums depend on the order of addition, and XLA:CPU chooses the order by the number of rows. One row alone
is multiplied as a vector; with jaxlib 0.11.2 two or three rows have a path of their own, too. Above MAX_ROWS rows some
projections are cut into other blocks. Plain sums are handed to a library that divides them among threads by rows. The
functions here fix each row's order of addition. Tests check it bit for bit with jaxlib 0.10.2 and 0.11.2.

Platforms other than CPU run the plain form. Which form runs is decided when a program is lowered
(`lax.platform_dependent`), because a program may be traced on one platform and run on another.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Shaped

MIN_ROWS = 4
MAX_ROWS = 32
_LANES = 16


def pad_rows(x: Shaped[Array, "B *rest"]) -> Shaped[Array, "padded *rest"]:
    """Pad the leading axis with zeros to at least MIN_ROWS. The caller drops the padding of its results by `[:B]`."""
    short = MIN_ROWS - x.shape[0]
    return x if short <= 0 else jnp.pad(x, [(0, short)] + [(0, 0)] * (x.ndim - 1))


def project_rows(project: Callable[[jax.Array, Any], jax.Array], x: Shaped[Array, "B *rest"], kernel: Any) -> jax.Array:
    """`project(x, kernel)`, on CPU in groups of MIN_ROWS to MAX_ROWS rows.

    Args:
      project: a function of rows and a kernel that treats each row alike.
      x: the rows; at least MIN_ROWS (`pad_rows`).
      kernel: an array, or a pytree of arrays (an int8 kernel with its scales).

    Returns:
      What `project` returns for all rows.
    """
    rows = x.shape[0]
    if rows <= MAX_ROWS:
        return project(x, kernel)
    # XLA would add a last group of fewer than MIN_ROWS in another order, so such a group takes rows from the one
    # before.
    edges = [*range(0, rows, MAX_ROWS), rows]
    if edges[-1] - edges[-2] < MIN_ROWS:
        edges[-2] -= MIN_ROWS

    def grouped(x: jax.Array, kernel: Any) -> jax.Array:
        """The groups' projections, one after the other."""
        return jnp.concatenate([project(x[i:j], kernel) for i, j in itertools.pairwise(edges)])

    return lax.platform_dependent(x, kernel, cpu=grouped, default=project)


@jax.custom_jvp
def row_sum(x: Float[Array, "*rows width"]) -> Float[Array, "*rows"]:
    """The sum over the last axis, of float32 in float32."""
    return lax.platform_dependent(x, cpu=_sum_in_own_loop, default=functools.partial(jnp.sum, axis=-1))


def row_dot(x: Float[Array, "*rows width"], kernel: Float[Array, " width"]) -> Float[Array, "*rows"]:
    """Each row's dot product with one vector, float32.

    On CPU it is a `row_sum` of products: XLA:CPU computes a product of a single column in blocks of rows.
    """
    plain = lambda x, kernel: jnp.einsum("...i,i->...", x, kernel)
    by_row = lambda x, kernel: row_sum(x * lax.expand_dims(kernel, range(x.ndim - 1)))
    return lax.platform_dependent(x, kernel, cpu=by_row, default=plain)


@row_sum.defjvp
def _row_sum_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    return row_sum(*primals), jnp.sum(tangents[0], axis=-1)


def _sum_in_own_loop(x: jax.Array) -> jax.Array:
    # XLA hands a sum to the library only if it recognises the reducer as an addition. The maximum with the lowest
    # finite float hides it and changes no finite sum. Adding in _LANES columns lets XLA's own loop use vector
    # instructions.
    lowest = np.float32(np.finfo(np.float32).min)
    add = lambda a, b: lax.add(lax.max(a, lowest), b)
    zero, width = np.float32(0), x.shape[-1]
    x = _undivided_rows(x)
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -width % _LANES)])
    columns = x.reshape(*x.shape[:-1], -1, _LANES)
    return lax.reduce(lax.reduce(columns, zero, add, (x.ndim - 1,)), zero, add, (x.ndim - 1,))


def _undivided_rows(x: jax.Array) -> jax.Array:
    """On a mesh, let every row be whole on one device (logits are otherwise divided by vocabulary).

    XLA can't combine the devices' partial results of a reducer that it doesn't know, and a whole row is added in the
    same order as without a mesh.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return lax.with_sharding_constraint(x, PartitionSpec(*(PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1), None))
