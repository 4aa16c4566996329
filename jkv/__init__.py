"""jkv: budgeted reasoning decode in JAX.

From Python: ``load``, ``decode``, ``sweep``, ``train_predictor``, ``register`` and ``view``; docs/api.md.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

# Modules that can be called by their name: `jkv.view(...)`. Imported when first asked for, `import jkv` stays cheap.
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
