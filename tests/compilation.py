"""How tests compile: most of their time is XLA's, so what checks logic alone does without its optimisations."""

import contextlib
import os
from collections.abc import Iterator

import jax
import pytest

from jkv.placement import OneDevice

# Programs of logic tests run for milliseconds. XLA's newer emitters take most of what is left of their compilation.
_QUICK = {"xla_cpu_use_fusion_emitters": False}


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

    def quickly(self, function, arguments, outputs, formats):
        quick = jax.config.values["jax_disable_most_optimizations"]
        lowered = jax.jit(function, donate_argnums=1).lower(*arguments)
        return lowered.compile(compiler_options=_QUICK if quick else None)

    with optimised(False), pytest.MonkeyPatch.context() as patch:
        patch.setattr(OneDevice, "compile", quickly)
        yield


@pytest.fixture
def as_users_do() -> Iterator[None]:
    """For a test of the compiled program itself, or of bits."""
    with optimised(True):
        yield


def quick_environment(devices: int = 1) -> dict[str, str]:
    """The environment of a process that compiles in the same way, on so many simulated devices."""
    flags = [f"--xla_force_host_platform_device_count={devices}", "--xla_cpu_use_fusion_emitters=false"]
    return {
        **os.environ, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "XLA_FLAGS": " ".join(flags),
    }  # fmt: skip
