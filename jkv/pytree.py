"""Frozen dataclasses as JAX pytrees that JAX rebuilds without calling ``__init__``.

JAX also rebuilds a pytree around things that are not arrays: ``None``, shardings, placeholders. A constructor that
checks its arguments would refuse those. ``jax.tree_util.register_dataclass`` isn't used here because it calls the
constructor whenever it rebuilds.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any, TypeVar, dataclass_transform

import jax

_C = TypeVar("_C", bound=type)


def static(**options: Any) -> Any:
    """A dataclass field that is no array. It must be hashable, and a program is compiled anew for each value of it.

    Args:
        **options: those of ``dataclasses.field``, except ``metadata``.
    """
    return dataclasses.field(metadata={"static": True}, **options)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, static))
def pytree(cls: _C) -> _C:
    """Class decorator: a frozen dataclass and pytree, whose children are all fields but those made by ``static``."""
    cls = dataclasses.dataclass(frozen=True)(cls)
    fields = dataclasses.fields(cls)
    child_names = tuple(field.name for field in fields if not field.metadata.get("static"))
    static_names = tuple(field.name for field in fields if field.metadata.get("static"))

    def static_values(node: Any) -> tuple[Any, ...]:
        """The static fields' values; JAX stores them in the pytree's structure."""
        return tuple(getattr(node, name) for name in static_names)

    def flatten_with_keys(node: Any) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
        """The children, each after its key, and the static values."""
        return [(jax.tree_util.GetAttrKey(name), getattr(node, name)) for name in child_names], static_values(node)

    def flatten(node: Any) -> tuple[list[Any], tuple[Any, ...]]:
        """The children and the static values."""
        return [getattr(node, name) for name in child_names], static_values(node)

    def unflatten(values: tuple[Any, ...], children: Iterable[Any]) -> Any:
        """An object of the class with these fields, its constructor not called."""
        node = object.__new__(cls)
        for name, child in zip(child_names + static_names, (*children, *values), strict=True):
            object.__setattr__(node, name, child)
        return node

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls
