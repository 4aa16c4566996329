"""Chooses an implementation of an op by name, and the platform's own among those of one name."""

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
    """What a program traced now is for: ``target``'s platform, else the mesh's (`jax.set_mesh`), else this one's."""
    if (chosen := _target.get()) is not None:
        return chosen
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is not None and device.device_kind.startswith("TPU"):
        return "tpu"
    backend = jax.default_backend()
    return {"tpu": "tpu", "gpu": "gpu", "cuda": "gpu", "rocm": "gpu"}.get(backend, "cpu")  # pyright: ignore[reportReturnType]


@contextlib.contextmanager
def target(name: Platform) -> Iterator[None]:
    """Programs traced inside are for another platform than this process's (to lower or compile them elsewhere)."""
    token = _target.set(name)
    try:
        yield
    finally:
        _target.reset(token)


def run(op: str, table: Mapping[str, Callable[..., Any]], implementation: str, *args: Any, **kwargs: Any) -> Any:
    """Calls the implementation asked for.

    `table` maps a name to a function that either returns the result or raises NotImplementedError saying why it can't
    (wrong platform, shape or dtype). 'auto' takes the first of the platform's AUTO_ORDER that can; any other name runs
    or raises.

    Raises:
      ValueError: the name is not one of NAMES.
      NotImplementedError: the implementation asked for by name can't run here.
    """
    if implementation not in NAMES:
        raise ValueError(f"{op}: unknown implementation {implementation!r}; choose one of {', '.join(NAMES)}")
    if implementation != "auto":
        return table[implementation](*args, **kwargs)
    reasons = []
    for name in AUTO_ORDER[platform()]:
        try:
            return table[name](*args, **kwargs)
        except NotImplementedError as error:
            reasons.append(f"{name}: {error}")
    raise NotImplementedError(f"{op}: no implementation can run here ({'; '.join(reasons)})")


def pallas(op: str, **kernels: Callable[..., Any]) -> Callable[..., Any]:
    """One function over an op's kernels by platform (``tpu=``, ``gpu=``); raises NotImplementedError on another."""

    def chosen(*args: Any, **kwargs: Any) -> Any:
        here = platform()
        if here not in kernels:
            have = " and ".join(name.upper() for name in kernels) or "no platform"
            raise NotImplementedError(f"{op} has a pallas kernel for {have}, not for {here.upper()}")
        return kernels[here](*args, **kwargs)

    return chosen
