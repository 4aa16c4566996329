"""jkv: decoding long thoughts within a fixed KV budget, in JAX.

From Python there are ``load``, ``decode``, ``sweep``, ``train_predictor``, ``register`` and ``view``: docs/api.md.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

# Modules that can be called like functions: `jkv.view(...)`. They are imported at first use, so that `import jkv` is
# quick.
_CALLABLE = ("decode", "load", "sweep", "train_predictor", "view")
_ELSEWHERE = {"register": "jkv.policies"}


def __getattr__(name: str) -> Any:
    if name in _CALLABLE:
        return importlib.import_module(f"jkv.{name}")
    if name in _ELSEWHERE:
        return getattr(importlib.import_module(_ELSEWHERE[name]), name)
    raise AttributeError(f"module 'jkv' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_CALLABLE, *_ELSEWHERE})
