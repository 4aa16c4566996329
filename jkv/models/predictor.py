"""DynTS's importance predictor: how much a thinking token will matter to the answer, from its hidden state.

An MLP on the final-norm hidden state, D -> 2D -> D/2 -> 1 with softplus after every layer and no bias
(arXiv:2601.18383; its published checkpoints fix the widths at 8192 and 2048 whatever D is). Any widths are read.
"""

import itertools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jkv.axes import Array, Float
from jkv.errors import UserError
from jkv.files.tensors import read_tensors, tensor_shapes
from jkv.files.whole import replacing, write_json
from jkv.models.layers import project
from jkv.ops.rows import pad_rows, row_dot

FILE = "predictor.safetensors"
CONFIG = "predictor.json"  # beside FILE: which hidden state it reads, and how it was made
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


def random_predictor(
    d_model: int, seed: int = 0, dtype=jnp.float32, *, wide: int | None = None, narrow: int | None = None
) -> Predictor:
    """Untrained weights, to begin training with. wide, narrow: the hidden layers' sizes unless 2D and D/2."""
    rng = np.random.default_rng(seed)
    widths = (d_model, wide or 2 * d_model, narrow or max(1, d_model // 2), 1)
    draw = lambda i, o: jnp.asarray(rng.normal(size=(i, o)) * i**-0.5, dtype)
    first, second, third = (draw(i, o) for i, o in itertools.pairwise(widths))
    return first, second, third


def load_predictor(path: Path, d_model: int, dtype=jnp.float32) -> Predictor:
    """Weights from FILE.safetensors, or from predictor.safetensors in a directory.

    Raises UserError if they aren't there or belong to a model of another D.
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
    """Write weights under the published names, each file whole or not at all; ``config`` beside them as JSON.

    path: FILE.safetensors, or a directory.
    """
    path = _file(path)
    if config is not None:
        write_json(path.with_suffix(".json"), config)
    save_tensors(path, {name: np.asarray(kernel).T for name, kernel in zip(NAMES, predictor, strict=True)})


def save_tensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Write tensors under their published names, whole or not at all."""
    from safetensors.numpy import save_file

    with replacing(path) as scratch:
        save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, scratch)


def hidden_layer(path: Path, n_layers: int) -> int | None:
    """Which layer's attention input a predictor reads; None for the final norm's output, as published ones do.

    path: FILE.safetensors or the directory it is in. Raises UserError if the config beside it says no such layer.
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
        what = f"layer {layer!r} is none of this model's {n_layers}"
        raise UserError(what, where=str(file), mend="it belongs to another model")
    return layer


def _file(path: Path) -> Path:
    return path / FILE if path.is_dir() else path
