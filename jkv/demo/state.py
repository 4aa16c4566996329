"""The state file that an interrupted training run resumes from."""

import pathlib
import zipfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jkv.errors import UserError
from jkv.files.whole import replacing


def save(path: pathlib.Path, state: Any, step: int, run: str) -> None:
    """Write a training state, whole or not at all.

    Args:
        path: the file.
        state: a pytree of arrays.
        step: steps that were taken.
        run: identifies the run; ``load`` compares it.

    Raises:
        OSError: it can't be written.
    """
    leaves: dict[str, Any] = {f"leaf{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
    with replacing(path) as scratch, open(scratch, "wb") as file:
        np.savez(file, step=step, run=run, **leaves)


def load(path: pathlib.Path, like: Any, run: str) -> tuple[Any, int]:
    """Read what ``save`` wrote.

    Args:
        path: the file.
        like: a pytree of the structure, shapes and dtypes that the state must have.
        run: as given to ``save``.

    Returns:
        The state, and the steps that were taken.

    Raises:
        UserError: the file is missing or damaged, or belongs to another run.
    """
    restart = "Train without --resume, or into another --out."
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except FileNotFoundError:
        raise UserError("no training state to resume", where=str(path), mend=restart) from None
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"the training state can't be read ({error})", where=str(path), mend=restart) from None
    if str(arrays.get("run")) != run:
        raise UserError(f"the training state is of {arrays.get('run')}, not of {run}", where=str(path), mend=restart)
    leaves, tree = jax.tree.flatten(like)
    named = [arrays.get(f"leaf{i}") for i in range(len(leaves))]
    for i, (leaf, stored) in enumerate(zip(leaves, named, strict=True)):
        if stored is None or (stored.shape, stored.dtype) != (leaf.shape, leaf.dtype):
            raise UserError(f"leaf {i} is missing or has another shape", where=str(path), mend=restart)
    return jax.tree.unflatten(tree, [jnp.asarray(x) for x in named]), int(arrays["step"])
