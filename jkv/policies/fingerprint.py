"""What the code of a policy is: under the same name and options it may be another tomorrow."""

import hashlib
import inspect
import types
from typing import Any

from jkv.policies.base import Needs


def code_digest(policy: type) -> str | None:
    """A digest of what a policy's methods do, None for jkv's own. Functions outside the class don't count.

    Bytecode is compared, so another Python makes it another policy.
    """
    mine = [cls for cls in policy.__mro__ if cls is not object and cls.__module__.partition(".")[0] != "jkv"]
    if not mine:
        return None
    sha = hashlib.sha256()
    for cls in mine:
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
    """The same text for the same code, in every process."""
    if isinstance(constant, types.CodeType):
        constants = [_plain(part) for part in constant.co_consts]
        return repr((constant.co_code, constant.co_names, constants))
    if isinstance(constant, frozenset):
        return repr(sorted(map(repr, constant)))
    return repr(constant)
