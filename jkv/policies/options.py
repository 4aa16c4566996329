"""Policies from words: a name, options as text or values, files that register more of them."""

import dataclasses
import importlib.util
import pathlib
import reprlib
import sys
from collections.abc import Mapping
from typing import Any, get_origin, get_type_hints

import pydantic

from jkv.errors import UserError
from jkv.policies import get_policy
from jkv.policies.base import Policy


def make_policy(name: str, options: Mapping[str, Any]) -> Policy:
    """The policy ``name`` with ``options``: values, or text to be read as the option's type.

    Raises UserError naming what there is, for an unknown policy, an unknown option or a value of another type.
    """
    cls = get_policy(name)
    kinds = get_type_hints(cls, include_extras=True) if dataclasses.is_dataclass(cls) else {}
    known = [field.name for field in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []
    values = {}
    for option, value in options.items():
        where = f"--options {option}"
        if option not in known:
            there = f"it has {', '.join(known)}" if known else "it has none"
            raise UserError(f"policy {name} has no option {option!r}", where="--options", mend=there)
        if isinstance(value, str) and get_origin(kinds[option]) is tuple:
            value = [part for part in value.split(",") if part]
        try:
            adapter = pydantic.TypeAdapter(kinds[option], config={"allow_inf_nan": False})
            values[option] = adapter.validate_python(value)
        except pydantic.ValidationError as error:
            raise UserError(f"{error.errors()[0]['msg']}, got {reprlib.repr(value)}", where=where) from None
    try:
        return cls(**values)
    except ValueError as error:  # a policy that checks its own options
        raise UserError(str(error), where="--options") from None


def run_policy_file(file: str) -> None:
    """Run a Python file of the user's, which registers policies. Raises UserError if it can't be found or run."""
    path = pathlib.Path(file).expanduser()
    if not path.is_file():
        raise UserError("no such file", where=file, mend="--register takes Python files")
    name = f"jkv_registered_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError("is no Python file", where=file, mend="its name should end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:
        line = error.__traceback__
        while line is not None and line.tb_next is not None:
            line = line.tb_next
        at = f"{file}, line {line.tb_lineno}" if line is not None else file
        raise UserError(f"raises {type(error).__name__}: {error}", where=at, mend="mend the file") from None
