"""A row's numbers must not depend on the batch around it: on CPU, in float32, not by a single bit.

XLA:CPU picks another order of addition when the number of rows changes: one row alone takes a matrix-vector path (with
jaxlib 0.11.2 two or three rows take one of their own), more than MAX_ROWS rows block some projections differently, and
plain sums go to a library that splits them by rows. These helpers keep each row's order of addition fixed; tests hold
it bit for bit with jaxlib 0.10.2 and 0.11.2.
Other platforms run the plain form: the choice is made when a program is lowered, not here.
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
    """Pads the leading axis with zeros to at least MIN_ROWS; drop the extra rows of the result with `[:B]`."""
    short = MIN_ROWS - x.shape[0]
    return x if short <= 0 else jnp.pad(x, [(0, short)] + [(0, 0)] * (x.ndim - 1))


def project_rows(project: Callable[[jax.Array, Any], jax.Array], x: Shaped[Array, "B *rest"], kernel: Any) -> jax.Array:
    """`project(x, kernel)`, on CPU in groups of at most MAX_ROWS rows (each of at least MIN_ROWS). kernel: a pytree."""
    rows = x.shape[0]
    if rows <= MAX_ROWS:
        return project(x, kernel)
    # A last group of fewer than MIN_ROWS would add in another order: let it borrow rows from its neighbour.
    edges = [*range(0, rows, MAX_ROWS), rows]
    if edges[-1] - edges[-2] < MIN_ROWS:
        edges[-2] -= MIN_ROWS

    def grouped(x: jax.Array, kernel: Any) -> jax.Array:
        return jnp.concatenate([project(x[i:j], kernel) for i, j in itertools.pairwise(edges)])

    return lax.platform_dependent(x, kernel, cpu=grouped, default=project)


@jax.custom_jvp
def row_sum(x: Float[Array, "*rows width"]) -> Float[Array, "*rows"]:
    """Sum over the last axis, float32 in and out."""
    return lax.platform_dependent(x, cpu=_sum_in_own_loop, default=functools.partial(jnp.sum, axis=-1))


def row_dot(x: Float[Array, "*rows width"], kernel: Float[Array, " width"]) -> Float[Array, "*rows"]:
    """Each row's dot product with one vector, float32: XLA:CPU adds so narrow a product in blocks of rows."""
    plain = lambda x, kernel: jnp.einsum("...i,i->...", x, kernel)
    apart = lambda x, kernel: row_sum(x * lax.expand_dims(kernel, range(x.ndim - 1)))
    return lax.platform_dependent(x, kernel, cpu=apart, default=plain)


@row_sum.defjvp
def _row_sum_jvp(primals, tangents):
    return row_sum(*primals), jnp.sum(tangents[0], axis=-1)


def _sum_in_own_loop(x: jax.Array) -> jax.Array:
    # A reducer that the library does not recognise keeps the sum in XLA's own loop; the maximum with the lowest finite
    # float changes no finite sum. Lanes let that loop use vector instructions.
    lowest = np.float32(np.finfo(np.float32).min)
    add = lambda a, b: lax.add(lax.max(a, lowest), b)
    zero, width = np.float32(0), x.shape[-1]
    x = _whole_rows(x)
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -width % _LANES)])
    columns = x.reshape(*x.shape[:-1], -1, _LANES)
    return lax.reduce(lax.reduce(columns, zero, add, (x.ndim - 1,)), zero, add, (x.ndim - 1,))


def _whole_rows(x: jax.Array) -> jax.Array:
    """On a mesh: no row is spread over devices (logits are, by vocabulary). They could not add up such a reducer's
    results, and a whole row is added in the order of one device."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return lax.with_sharding_constraint(x, PartitionSpec(*(PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1), None))
