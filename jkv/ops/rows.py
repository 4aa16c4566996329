"""Row padding that keeps a row's projections bit-equal at any batch size."""

import jax.numpy as jnp
from jaxtyping import Array, Shaped

MIN_ROWS = 2
MAX_ROWS = 32


def pad_rows(x: Shaped[Array, "B *rest"]) -> Shaped[Array, "padded *rest"]:
    """Pads the leading axis with zeros to at least MIN_ROWS; drop the extra rows of the result with `[:B]`.

    XLA:CPU computes `x[B, D] @ w[D, F]` in float32 with the same bits per row for every B in MIN_ROWS..MAX_ROWS
    (measured, jaxlib 0.10.2). One row alone takes a matrix-vector path that adds in another order; so do, for some
    shapes, more than MAX_ROWS rows, which no padding mends.
    """
    short = MIN_ROWS - x.shape[0]
    return x if short <= 0 else jnp.pad(x, [(0, short)] + [(0, 0)] * (x.ndim - 1))
