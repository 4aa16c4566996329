"""A fingerprint of a custom policy's code, so that a resumed run notices an edit.

The name and the options of a policy stay the same when its file is edited, and samples of two versions must not be
mixed in one run. jkv's own policies need no fingerprint: they change only with the package.
"""

import hashlib
import inspect
import types
from typing import Any

from jkv.policies.base import Needs


def code_digest(policy: type) -> str | None:
    """A digest of what a policy class does.

    It covers the bytecode of methods and properties and the plain class attributes, of the class and of those it
    inherits from outside jkv. Functions outside the class are not covered. Bytecode differs between versions of Python,
    so another Python makes it another policy.

    Args:
        policy: the class.

    Returns:
        16 hexadecimal digits; None for a policy of jkv's own.
    """
    custom = [cls for cls in policy.__mro__ if cls is not object and cls.__module__.partition(".")[0] != "jkv"]
    if not custom:
        return None
    sha = hashlib.sha256()
    for cls in custom:
        for name, member in sorted(vars(cls).items()):
            if name.startswith("__"):
                continue
            function = getattr(member, "fget", None) or getattr(member, "__func__", member)
            code = getattr(inspect.unwrap(function), "__code__", None) if callable(function) else None
            if code is not None:
                sha.update(f"{name}: {_plain(code)}".encode())
            elif isinstance(member, str | int | float | tuple | Needs):
                sha.update(f"{name} = {member!r}".encode())
    return sha.hexdigest()[:16]


def _plain(constant: Any) -> str:
    """Text for a code object or one of its constants: the same for the same code, in every process.

    ``repr`` alone won't do: that of a code object has its address, and a set's order differs between processes.
    """
    if isinstance(constant, types.CodeType):
        constants = [_plain(part) for part in constant.co_consts]
        return repr((constant.co_code, constant.co_names, constants))
    if isinstance(constant, frozenset):
        return repr(sorted(map(repr, constant)))
    return repr(constant)
