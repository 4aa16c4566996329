"""``jkv.view`` is a module (``python -m jkv.view``) and a function (``jkv.view(...)``): a module that can be called.

Importing a submodule binds its name in the package, over any function of that name; so the module itself answers calls.
"""

import functools
import sys
import types
from collections.abc import Callable
from typing import Any


def make_callable(module: str, function: Callable[..., Any]) -> None:
    """Let calls of the imported ``module`` go to ``function``, whose signature and docstring it shows."""

    class CallableModule(types.ModuleType):
        @functools.wraps(function)
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

    sys.modules[module].__class__ = CallableModule
