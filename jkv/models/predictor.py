"""DynTS's importance predictor (arXiv:2601.18383): how much a thinking token will matter to the answer.

It is a multilayer perceptron on a token's hidden state, D -> 2D -> D/2 -> 1, without biases and with a softplus after
every layer. The published checkpoints (Robin930/DynTS) have widths 8192 and 2048 for every D. Any widths can be read.
"""

import itertools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jkv.axes import Array, Float
from jkv.errors import UserError
from jkv.files.tensors import read_tensors, tensor_shapes
from jkv.files.whole import replacing, write_json
from jkv.models.layers import project
from jkv.ops.rows import pad_rows, row_dot

FILE = "predictor.safetensors"
CONFIG = "predictor.json"  # beside FILE: which hidden state the predictor reads, and how it was trained
# The weights' names in the published checkpoints, where they are [out, in]. Softplus layers have the odd numbers.
NAMES = ("is_head.0.weight", "is_head.2.weight", "is_head.4.weight")

Predictor = tuple[Float[Array, "D wide"], Float[Array, "wide narrow"], Float[Array, "narrow 1"]]  # the weights


def importance(predictor: Predictor, hidden: Float[Array, "B T D"]) -> Float[Array, "B T"]:
    """The predicted importance of each token, at least 0, float32.

    Args:
        predictor: the weights.
        hidden: the hidden states that the predictor reads (``hidden_layer``).
    """
    rows, x = hidden.shape[0], pad_rows(hidden)
    *wide, last = predictor
    for kernel in wide:
        x = jax.nn.softplus(project("BTD,DF->BTF", x.astype(kernel.dtype), kernel, preferred_element_type=jnp.float32))
    x, last = (a.astype(last.dtype).astype(jnp.float32) for a in (x, last))
    return jax.nn.softplus(row_dot(x, last[:, 0]))[:rows]


def random_predictor(
    d_model: int,
    seed: int = 0,
    dtype: DTypeLike = jnp.float32,
    *,
    wide: int | None = None,
    narrow: int | None = None,
) -> Predictor:
    """Untrained weights, to begin training with.

    Args:
        d_model: D.
        seed: of the random numbers.
        dtype: of the weights.
        wide: the first hidden layer's size; None means 2D.
        narrow: the second hidden layer's size; None means D/2.
    """
    rng = np.random.default_rng(seed)
    widths = (d_model, wide or 2 * d_model, narrow or max(1, d_model // 2), 1)
    draw = lambda i, o: jnp.asarray(rng.normal(size=(i, o)) * i**-0.5, dtype)
    first, second, third = (draw(i, o) for i, o in itertools.pairwise(widths))
    return first, second, third


def load_predictor(path: Path, d_model: int, dtype: DTypeLike = jnp.float32) -> Predictor:
    """Read weights.

    Args:
        path: FILE.safetensors, or the directory that ``predictor.safetensors`` is in.
        d_model: D of the model that the predictor is for.
        dtype: of the weights that are returned.

    Raises:
        UserError: there is no such file, it holds no predictor, or one for another D.
    """
    path = _file(path)
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


def save_predictor(path: Path, predictor: Predictor, config: dict[str, Any] | None = None) -> None:
    """Write weights under the published names. Each file is written whole or not at all.

    Args:
        path: FILE.safetensors, or the directory to write ``predictor.safetensors`` into.
        predictor: the weights.
        config: what to write beside them as JSON: ``layer`` (``hidden_layer``), and how they were trained. None writes
            nothing.

    Raises:
        OSError, SafetensorError: a file can't be written.
    """
    path = _file(path)
    if config is not None:
        write_json(path.with_suffix(".json"), config)
    save_tensors(path, {name: np.asarray(kernel).T for name, kernel in zip(NAMES, predictor, strict=True)})


def save_tensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Write a safetensors file, whole or not at all.

    Args:
        path: the file.
        tensors: its tensors by name.

    Raises:
        OSError, SafetensorError: the file can't be written.
    """
    from safetensors.numpy import save_file

    with replacing(path) as scratch:
        save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, scratch)


def hidden_layer(path: Path, n_layers: int) -> int | None:
    """Which hidden states a predictor reads, by the config beside it.

    Args:
        path: FILE.safetensors, or the directory that ``predictor.safetensors`` is in.
        n_layers: L of the model that the predictor is for.

    Returns:
        The layer whose attention's input it reads; None if it reads the final norm's output. The published predictors,
        which have no such config, do the latter.

    Raises:
        UserError: the config can't be read, or names a layer that the model hasn't.
    """
    file = _file(path).with_suffix(".json")
    if not file.exists():
        return None
    try:
        layer = json.loads(file.read_text(encoding="utf-8")).get("layer")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"is no predictor's config ({error})", where=str(file), mend="train the predictor again"
        ) from None
    if layer is not None and not (isinstance(layer, int) and not isinstance(layer, bool) and 0 <= layer < n_layers):
        what = f"layer {layer!r} is none of this model's {n_layers} layers"
        raise UserError(what, where=str(file), mend="it belongs to another model")
    return layer


def _file(path: Path) -> Path:
    """The weights' file, of a path that may be its directory."""
    return path / FILE if path.is_dir() else path
