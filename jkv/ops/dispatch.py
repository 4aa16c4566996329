"""Chooses the implementation of an op: by name, or for `auto` the first of the platform's list that can run.

An implementation that can't run here (wrong platform, shape or dtype) raises NotImplementedError with the reason.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import jax

Platform = Literal["cpu", "tpu", "gpu"]

NAMES = ("auto", "xla", "reference", "pallas")
AUTO_ORDER: Mapping[Platform, tuple[str, ...]] = {"tpu": ("pallas", "xla"), "gpu": ("pallas", "xla"), "cpu": ("xla",)}

_target: contextvars.ContextVar[Platform | None] = contextvars.ContextVar("target", default=None)


def platform() -> Platform:
    """The platform that a program traced now will run on.

    It is the one set by ``target``; else TPU if the current mesh (`jax.set_mesh`) is of TPUs, which need not be
    attached to this machine; else the platform of JAX's default backend.
    """
    if (chosen := _target.get()) is not None:
        return chosen
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is not None and device.device_kind.startswith("TPU"):
        return "tpu"
    backend = jax.default_backend()
    return {"tpu": "tpu", "gpu": "gpu", "cuda": "gpu", "rocm": "gpu"}.get(backend, "cpu")  # pyright: ignore[reportReturnType]


@contextlib.contextmanager
def target(name: Platform) -> Iterator[None]:
    """Programs traced inside are for the platform ``name``, whatever this process runs on.

    For programs that are lowered or compiled here and run elsewhere.
    """
    token = _target.set(name)
    try:
        yield
    finally:
        _target.reset(token)


def run(op: str, table: Mapping[str, Callable[..., Any]], implementation: str, *args: Any, **kwargs: Any) -> Any:
    """Call the chosen implementation of an op with ``args`` and ``kwargs``, and return its result.

    Args:
        op: the op's name, for error messages.
        table: the op's implementations, one for each of NAMES but 'auto'. Each returns the result, or raises
            NotImplementedError with the reason why it can't run here.
        implementation: one of NAMES. 'auto' tries the platform's AUTO_ORDER until one can run.

    Raises:
        ValueError: the implementation is none of NAMES.
        NotImplementedError: the implementation can't run here, or for 'auto' none of the platform's can. The message
            has the reason of each that was tried.
    """
    if implementation not in NAMES:
        raise ValueError(f"{op}: unknown implementation {implementation!r}; choose one of {', '.join(NAMES)}")
    reasons, causes = [], []
    for name in AUTO_ORDER[platform()] if implementation == "auto" else (implementation,):
        try:
            return table[name](*args, **kwargs)
        except NotImplementedError as error:
            reasons.append(f"{name}: {error}")
            causes.append(error)
    raise NotImplementedError(f"{op} can't run here ({'; '.join(reasons)})") from causes[-1]


def pallas(**kernels: Callable[..., Any]) -> Callable[..., Any]:
    """An op's Pallas kernels as one implementation, which calls the kernel of the platform it is traced for.

    Args:
        **kernels: each platform's kernel, by the platform's name: ``tpu=``, ``gpu=``.

    Returns:
        A function of the kernels' arguments. It raises NotImplementedError on a platform without a kernel.
    """

    def platform_kernel(*args: Any, **kwargs: Any) -> Any:
        """The result of this platform's kernel."""
        here = platform()
        if not kernels:
            raise NotImplementedError("there is no pallas kernel")
        if here not in kernels:
            there = " and ".join(name.upper() for name in kernels)
            raise NotImplementedError(f"there is a pallas kernel for {there}, not for {here.upper()}")
        return kernels[here](*args, **kwargs)

    return platform_kernel
