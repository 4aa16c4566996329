"""Frozen dataclasses as JAX pytrees whose unflattening skips ``__init__``.

JAX rebuilds pytrees with leaves that are no arrays (tracers' descriptions, ``None``, shardings), so the constructor's
checks must run for people and not for JAX. ``jax.tree_util.register_dataclass`` calls the constructor either way.
"""

import dataclasses
from typing import TypeVar, dataclass_transform

import jax

_C = TypeVar("_C", bound=type)


@dataclass_transform(frozen_default=True)
def pytree(cls: _C) -> _C:
    """Decorator: a frozen dataclass, all of whose fields are pytree children."""
    cls = dataclasses.dataclass(frozen=True)(cls)
    names = tuple(field.name for field in dataclasses.fields(cls))

    def flatten_with_keys(node):
        return [(jax.tree_util.GetAttrKey(name), getattr(node, name)) for name in names], None

    def flatten(node):
        return [getattr(node, name) for name in names], None

    def unflatten(_, children):
        node = object.__new__(cls)
        for name, child in zip(names, children, strict=True):
            object.__setattr__(node, name, child)
        return node

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls
