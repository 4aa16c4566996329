"""DynTS's importance predictor: how much a thinking token will matter to the answer, from its hidden state.

An MLP on the final-norm hidden state, D -> 2D -> D/2 -> 1 with softplus after every layer and no bias
(arXiv:2601.18383; its published checkpoints fix the widths at 8192 and 2048 whatever D is). Any widths are read.
"""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jkv.axes import Array, Float
from jkv.errors import UserError
from jkv.models.layers import project
from jkv.ops.rows import pad_rows, row_dot
from jkv.tensors import read_tensors, tensor_shapes

FILE = "predictor.safetensors"
# Names of the published checkpoints: a Sequential whose odd members are the softplus. Weights are [out, in].
NAMES = ("is_head.0.weight", "is_head.2.weight", "is_head.4.weight")

Predictor = tuple[Float[Array, "D wide"], Float[Array, "wide narrow"], Float[Array, "narrow 1"]]


def importance(predictor: Predictor, hidden: Float[Array, "B T D"]) -> Float[Array, "B T"]:
    """Predicted importance, at least 0, float32."""
    rows, x = hidden.shape[0], pad_rows(hidden)
    *wide, last = predictor
    for kernel in wide:
        x = jax.nn.softplus(project("BTD,DF->BTF", x.astype(kernel.dtype), kernel, preferred_element_type=jnp.float32))
    x, last = (a.astype(last.dtype).astype(jnp.float32) for a in (x, last))
    return jax.nn.softplus(row_dot(x, last[:, 0]))[:rows]


def random_predictor(d_model: int, seed: int = 0, dtype=jnp.float32) -> Predictor:
    """Untrained weights of the right shapes (for tests and for measuring what the predictor costs)."""
    rng = np.random.default_rng(seed)
    widths = (d_model, 2 * d_model, max(1, d_model // 2), 1)
    draw = lambda i, o: jnp.asarray(rng.normal(size=(i, o)) * i**-0.5, dtype)
    first, second, third = (draw(i, o) for i, o in itertools.pairwise(widths))
    return first, second, third


def load_predictor(path: Path, d_model: int, dtype=jnp.float32) -> Predictor:
    """Weights from FILE.safetensors, or from predictor.safetensors in a directory.

    Raises UserError if they aren't there or belong to a model of another D.
    """
    if path.is_dir():
        path = path / FILE
    if not path.exists():
        raise UserError("no such predictor", where=str(path), mend="give FILE.safetensors or the directory it is in")
    found = tensor_shapes(path)
    shapes = [found.get(name, ()) for name in NAMES]
    if any(len(shape) != 2 for shape in shapes):
        raise UserError(
            f"has no predictor: {', '.join(NAMES)} expected, {', '.join(sorted(found)[:5]) or 'nothing'} found",
            where=str(path),
            mend="give a predictor of DynTS's form",
        )
    wide, narrow = shapes[0][0], shapes[1][0]
    expected: dict[str, tuple[int, ...]] = dict(zip(NAMES, ((wide, d_model), (narrow, wide), (1, narrow)), strict=True))
    tensors = read_tensors(path, expected)
    first, second, third = (jnp.asarray(tensors[name].T, dtype) for name in NAMES)
    return first, second, third


def save_predictor(path: Path, predictor: Predictor) -> None:
    """Write weights under the published names."""
    from safetensors.numpy import save_file

    arrays = {name: np.ascontiguousarray(np.asarray(kernel).T) for name, kernel in zip(NAMES, predictor, strict=True)}
    save_file(arrays, path)
