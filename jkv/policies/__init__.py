"""Eviction policies by name. ``register`` adds one; a policy only scores, see ``jkv.policies.base``."""

from typing import TypeVar

from jkv.errors import UserError
from jkv.policies.base import Granularity, Needs, NewTokens, Policy, Retention, Shape, Slots
from jkv.policies.full import Full
from jkv.policies.random import Random
from jkv.policies.streaming import Streaming
from jkv.policies.window import Window

__all__ = [
    "Full",
    "Granularity",
    "Needs",
    "NewTokens",
    "Policy",
    "Random",
    "Retention",
    "Shape",
    "Slots",
    "Streaming",
    "Window",
    "get_policy",
    "policy_names",
    "register",
]  # fmt: skip

_POLICIES: dict[str, type[Policy]] = {}
_P = TypeVar("_P", bound=type[Policy])


def register(policy: _P) -> _P:
    """Make a policy class usable by its ``name`` (also as a decorator). A name is taken once.

    Raises ValueError if the name is missing or belongs to another class.
    """
    name = getattr(policy, "name", None)
    if not name:
        raise ValueError(f"{policy.__name__} needs a class attribute `name`")
    taken = _POLICIES.get(name)
    # Running a notebook cell twice defines the same class twice: the later one wins.
    if taken is not None and taken.__qualname__ != policy.__qualname__:
        raise ValueError(f"the name {name!r} belongs to {taken.__qualname__}")
    _POLICIES[name] = policy
    return policy


def policy_names() -> list[str]:
    """Names of all registered policies."""
    return sorted(_POLICIES)


def get_policy(name: str) -> type[Policy]:
    """The policy class of that name. Raises UserError naming those there are."""
    if name not in _POLICIES:
        raise UserError(f"no policy {name!r}", where="--policy", mend=f"choose one of {', '.join(policy_names())}")
    return _POLICIES[name]


for _policy in (Full, Window, Streaming, Random):
    register(_policy)
