"""Frozen dataclasses as JAX pytrees whose unflattening skips ``__init__``.

JAX rebuilds pytrees with leaves that are no arrays (tracers' descriptions, ``None``, shardings), so the constructor's
checks must run for people and not for JAX. ``jax.tree_util.register_dataclass`` calls the constructor either way.
"""

import dataclasses
from typing import Any, TypeVar, dataclass_transform

import jax

_C = TypeVar("_C", bound=type)


def static(**options: Any) -> Any:
    """A field that is no array: hashable, and part of what a program is compiled for."""
    return dataclasses.field(metadata={"static": True}, **options)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, static))
def pytree(cls: _C) -> _C:
    """Decorator: a frozen dataclass, all of whose fields are pytree children, except those made by ``static``."""
    cls = dataclasses.dataclass(frozen=True)(cls)
    fields = dataclasses.fields(cls)
    names = tuple(field.name for field in fields if not field.metadata.get("static"))
    constants = tuple(field.name for field in fields if field.metadata.get("static"))

    def aux(node):
        return tuple(getattr(node, name) for name in constants)

    def flatten_with_keys(node):
        return [(jax.tree_util.GetAttrKey(name), getattr(node, name)) for name in names], aux(node)

    def flatten(node):
        return [getattr(node, name) for name in names], aux(node)

    def unflatten(values, children):
        node = object.__new__(cls)
        for name, child in zip(names + constants, (*children, *values), strict=True):
            object.__setattr__(node, name, child)
        return node

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls
