"""Chooses an implementation of an op by name."""

from collections.abc import Callable, Mapping
from typing import Any

NAMES = ("auto", "xla", "reference", "pallas")
AUTO_ORDER = ("pallas", "xla")


def run(op: str, table: Mapping[str, Callable[..., Any]], implementation: str, *args: Any, **kwargs: Any) -> Any:
    """Calls the implementation asked for.

    `table` maps a name to a function that either returns the result or raises NotImplementedError saying why it can't
    (wrong platform, shape or dtype). 'auto' takes the first of AUTO_ORDER that can; any other name runs or raises.

    Raises:
      ValueError: the name is not one of NAMES.
      NotImplementedError: the implementation asked for by name can't run here.
    """
    if implementation not in NAMES:
        raise ValueError(f"{op}: unknown implementation {implementation!r}; choose one of {', '.join(NAMES)}")
    if implementation != "auto":
        return table[implementation](*args, **kwargs)
    reasons = []
    for name in AUTO_ORDER:
        try:
            return table[name](*args, **kwargs)
        except NotImplementedError as error:
            reasons.append(f"{name}: {error}")
    raise NotImplementedError(f"{op}: no implementation can run here ({'; '.join(reasons)})")


def missing(op: str, name: str) -> Callable[..., Any]:
    """A stand-in for an implementation that has not been written: always raises NotImplementedError."""

    def unavailable(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{op} has no {name} implementation yet; use implementation='xla' or 'auto'")

    return unavailable
