"""Modules that can be called: ``jkv.view`` is a module (``python -m jkv.view``) and a function (``jkv.view(...)``).

Importing a submodule binds its name in the package and replaces a function of the same name. So the module itself has
to be callable.
"""

import functools
import inspect
import sys
import types
from collections.abc import Callable
from typing import Any


def make_callable(module: str, function: Callable[..., Any]) -> None:
    """Make a call of a module call ``function``. ``inspect.signature`` of the module is then that of the function.

    Args:
        module: the module's name in ``sys.modules``, into which it must have been imported.
        function: what a call of the module calls, with the same arguments.
    """

    class CallableModule(types.ModuleType):
        # Without it, inspect takes the function's first argument for the ``self`` of ``__call__``, and leaves it out.
        __signature__ = inspect.signature(function)

        @functools.wraps(function)
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

    sys.modules[module].__class__ = CallableModule
