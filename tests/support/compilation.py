"""How tests compile: most of their time is XLA's, so what checks logic alone does without its optimisations.

tests/conftest.py switches XLA's newer emitters off for the whole session where it can (tests/support/quick_flags.py). A
package whose conftest imports ``quick_compilation`` switches most optimisations off, too. A test of bits, or of the
compiled program itself, asks for what users get.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import pytest

from jkv.engine.placement import OneDevice
from tests.support.quick_flags import QUICK_FLAGS, USERS_OPTIONS


@contextlib.contextmanager
def optimised(yes: bool) -> Iterator[None]:
    """While the block runs, engines compile their programs as users do, or without most optimisations."""

    def as_users_do(self, function, arguments, outputs, formats):
        return jax.jit(function, donate_argnums=1).lower(*arguments).compile(compiler_options=USERS_OPTIONS)

    before = jax.config.values["jax_disable_most_optimizations"]
    with pytest.MonkeyPatch.context() as patch:
        jax.config.update("jax_disable_most_optimizations", not yes)
        if yes:
            patch.setattr(OneDevice, "compile", as_users_do)
        try:
            yield
        finally:
            jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="package", autouse=True)
def quick_compilation() -> Iterator[None]:
    """Imported by a package's conftest: its tests compile without most optimisations."""
    with optimised(False):
        yield


@pytest.fixture
def as_users_do() -> Iterator[None]:
    """For a test of an engine's compiled program itself, or of its bits."""
    with optimised(True):
        yield


def users_jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """``jax.jit(function)`` (which may be jitted already), compiled as users' programs are. Arrays only."""
    compiled: dict[Any, Any] = {}
    jitted = function if hasattr(function, "lower") else jax.jit(function)

    def call(*arguments):
        key = tuple((x.shape, x.dtype) for x in arguments)
        if key not in compiled:
            before = jax.config.values["jax_disable_most_optimizations"]
            jax.config.update("jax_disable_most_optimizations", False)
            compiled[key] = jitted.lower(*arguments).compile(compiler_options=USERS_OPTIONS)
            jax.config.update("jax_disable_most_optimizations", before)
        return compiled[key](*arguments)

    return call


def quick_environment(devices: int = 1) -> dict[str, str]:
    """The environment of a process that compiles in the same way, on so many simulated devices."""
    flags = [f"--xla_force_host_platform_device_count={devices}", *QUICK_FLAGS]
    return {
        **os.environ, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "XLA_FLAGS": " ".join(flags),
    }  # fmt: skip
