"""Eviction policies by name. ``register`` adds one. A policy only scores: see ``jkv.policies.base``."""

from typing import TypeVar

from jkv.errors import UserError
from jkv.policies.base import Context, Needs, NewTokens, Policy, Shape, Slots
from jkv.policies.dynts import DynTS
from jkv.policies.expected_attention import ExpectedAttention
from jkv.policies.full import Full
from jkv.policies.gkv import GKV
from jkv.policies.h2o import H2O
from jkv.policies.keydiff import KeyDiff
from jkv.policies.knorm import KNorm
from jkv.policies.lazy import Lazy
from jkv.policies.raas import RaaS
from jkv.policies.random import Random
from jkv.policies.retention import Granularity, Retention
from jkv.policies.rkv import RKV
from jkv.policies.sepllm import SepLLM
from jkv.policies.snapkv import SnapKV
from jkv.policies.streaming import Streaming
from jkv.policies.tova import TOVA
from jkv.policies.triattention import TriAttention
from jkv.policies.trimkv import TrimKV
from jkv.policies.vase import VaSE
from jkv.policies.window import Window

__all__ = [
    "GKV",
    "H2O",
    "RKV",
    "TOVA",
    "Context",
    "DynTS",
    "ExpectedAttention",
    "Full",
    "Granularity",
    "KNorm",
    "KeyDiff",
    "Lazy",
    "Needs",
    "NewTokens",
    "Policy",
    "RaaS",
    "Random",
    "Retention",
    "SepLLM",
    "Shape",
    "Slots",
    "SnapKV",
    "Streaming",
    "TriAttention",
    "TrimKV",
    "VaSE",
    "Window",
    "get_policy",
    "policy_names",
    "register",
]

_POLICIES: dict[str, type[Policy]] = {}
_P = TypeVar("_P", bound=type[Policy])


def register(policy: _P) -> _P:
    """Make a policy class usable by its ``name``; also as a decorator.

    Args:
        policy: a subclass of Policy with a class attribute ``name``.

    Returns:
        ``policy``.

    Raises:
        ValueError: the name is missing, or belongs to a class of another name. (A class of the same name replaces the
            former one. In a notebook any class does.)
    """
    name = getattr(policy, "name", None)
    if not name:
        raise ValueError(f"{policy.__name__} needs a class attribute `name`")
    taken = _POLICIES.get(name)
    # Running an edited notebook cell again defines the class again, perhaps under another class name: the later one
    # wins.
    in_notebook = taken is not None and taken.__module__ == policy.__module__ == "__main__"
    if taken is not None and taken.__qualname__ != policy.__qualname__ and not in_notebook:
        raise ValueError(f"the name {name!r} belongs to {taken.__qualname__}")
    _POLICIES[name] = policy
    return policy


def policy_names() -> list[str]:
    """Names of all registered policies."""
    return sorted(_POLICIES)


def get_policy(name: str) -> type[Policy]:
    """The policy class of that name.

    Raises:
        UserError: there is none; the message lists those there are.
    """
    if name not in _POLICIES:
        raise UserError(f"no policy {name!r}", where="--policy", mend=f"choose one of {', '.join(policy_names())}")
    return _POLICIES[name]


_BUILT_IN = (
    Full, Window, Streaming, Random, SepLLM, H2O, SnapKV, RKV, TOVA, KNorm, KeyDiff, ExpectedAttention, Lazy, RaaS,
    TriAttention, VaSE, GKV, TrimKV, DynTS,
)  # fmt: skip
for _policy in _BUILT_IN:
    register(_policy)
