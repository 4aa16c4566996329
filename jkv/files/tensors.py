"""Reading small safetensors files, of which every tensor's name and shape is known beforehand."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from jkv.errors import UserError


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor in a safetensors file, by name. Raises UserError if it can't be read."""
    try:
        with safe_open(path, framework="np") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"is no safetensors file that can be read ({error})", where=str(path)) from None


def read_tensors(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Read a safetensors file.

    Args:
        path: the file.
        shapes: of every tensor that must be in it, by name.

    Returns:
        The tensors as float32.

    Raises:
        UserError: the file can't be read, a tensor is missing, unexpected or of another shape, or a value isn't finite.
    """
    found = tensor_shapes(path)
    wrong = [f"{name} is missing" for name in shapes if name not in found]
    wrong += [f"{name} is not expected" for name in found if name not in shapes]
    wrong += [
        f"{name} is {list(found[name])}, expected {list(shape)}"
        for name, shape in shapes.items()
        if name in found and found[name] != tuple(shape)
    ]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise UserError(wrong[0] + more, where=str(path), mend="it belongs to another model or another policy")
    import ml_dtypes  # noqa: F401  # registers bfloat16 with NumPy

    with safe_open(path, framework="np") as file:
        tensors = {name: np.asarray(file.get_tensor(name)).astype(np.float32) for name in shapes}
    for name, value in tensors.items():
        if not np.isfinite(value).all():
            raise UserError(f"{name} has values that are not finite", where=str(path), mend="write the file again")
    return tensors
