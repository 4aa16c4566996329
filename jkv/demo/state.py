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
    """Write the leaves of ``state``, the number of steps taken and the run they belong to. Atomic."""
    leaves: dict[str, Any] = {f"leaf{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
    with replacing(path) as scratch, open(scratch, "wb") as file:
        np.savez(file, step=step, run=run, **leaves)


def load(path: pathlib.Path, like: Any, run: str) -> tuple[Any, int]:
    """Read what ``save`` wrote into the structure of ``like``. Returns (state, step).

    Raises:
        UserError: the file is missing or broken, or it is of another run.
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
