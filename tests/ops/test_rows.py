import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jkv.ops.rows import MAX_ROWS, pad_rows, project_rows, row_sum
from tests.support.compilation import users_jit

SIZES = [(320, 128), (512, 1376)]
LARGER = [(128, 256), (1376, 512), (512, 4096), (3584, 1024)]


@pytest.mark.parametrize(("dim", "out"), [*SIZES, *(pytest.param(*s, marks=pytest.mark.slow) for s in LARGER)])
def test_a_rows_projection_has_the_same_bits_at_any_batch_size(dim, out):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((MAX_ROWS, dim), np.float32))
    w = jnp.asarray(rng.standard_normal((dim, out), np.float32))
    w_heads = w.reshape(dim, -1, 32)
    matmul = users_jit(lambda x: (pad_rows(x) @ w)[: x.shape[0]])
    einsum = users_jit(lambda x: jnp.einsum("BTD,DNH->BTNH", pad_rows(x[:, None]), w_heads)[: x.shape[0]])
    whole, heads = np.asarray(matmul(x)), np.asarray(einsum(x))
    for rows in (1, 2, 3, 5, 8, 16):
        start = MAX_ROWS - rows  # another place in the batch as well
        np.testing.assert_array_equal(matmul(x[start:]), whole[start:])
        np.testing.assert_array_equal(einsum(x[start:]), heads[start:])


def test_padding_is_zero_and_only_where_needed():
    np.testing.assert_array_equal(pad_rows(jnp.full((1, 2), 7, jnp.int32)), [[7, 7], [0, 0], [0, 0], [0, 0]])
    assert pad_rows(jnp.ones((4, 3))).shape == (4, 3)
    assert pad_rows(jnp.ones((5,))).shape == (5,)


def test_projections_of_more_rows_than_a_group_keep_each_rows_bits():
    rng = np.random.default_rng(1)
    w = jnp.asarray(rng.standard_normal((512, 1376), np.float32))
    x = jnp.asarray(rng.standard_normal((2 * MAX_ROWS + 1, 512), np.float32))
    project = users_jit(lambda x: project_rows(jnp.matmul, x, w))
    whole = np.asarray(project(x))
    for rows in (4, MAX_ROWS, MAX_ROWS + 1, 40, 2 * MAX_ROWS):
        np.testing.assert_array_equal(project(x[-rows:]), whole[-rows:])
    np.testing.assert_allclose(whole, x @ w, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("width", [1, 15, 128, 4096])
def test_row_sum_has_the_same_bits_at_any_batch_size_and_the_gradient_of_a_sum(width):
    x = jnp.asarray(np.random.default_rng(2).standard_normal((40, 1, width), np.float32))
    total = users_jit(row_sum)
    whole = np.asarray(total(x))
    np.testing.assert_allclose(whole, np.asarray(x, np.float64).sum(-1), atol=1e-3)
    for rows in (1, 2, 3, 5, 8, 16, 33):
        np.testing.assert_array_equal(total(x[-rows:]), whole[-rows:])
    np.testing.assert_array_equal(jax.grad(lambda x: jnp.sum(row_sum(x * x)))(x), 2 * x)
