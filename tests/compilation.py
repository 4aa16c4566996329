"""How tests compile: most of their time is XLA's, so what checks logic alone does without its optimisations."""

import contextlib
from collections.abc import Iterator

import jax
import pytest


@contextlib.contextmanager
def optimised(yes: bool) -> Iterator[None]:
    """While the block runs, programs are compiled as users' are, or without most optimisations."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", not yes)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="package", autouse=True)
def quick_compilation() -> Iterator[None]:
    """Imported by a package's conftest: its tests compile without most optimisations."""
    with optimised(False):
        yield
