"""Policies from the command line: by name, with options as text or values, and from Python files of the user's."""

import dataclasses
import hashlib
import importlib.util
import pathlib
import reprlib
import sys
import traceback
from collections.abc import Mapping
from typing import Any, get_origin, get_type_hints

import pydantic

from jkv.errors import UserError
from jkv.policies import get_policy
from jkv.policies.base import Policy


def make_policy(name: str, options: Mapping[str, Any]) -> Policy:
    """Make a policy.

    Args:
        name: of a registered policy.
        options: by the name of the policy's field: a value, or text that is read as the field's type (a tuple's
            members are separated by commas).

    Raises:
        UserError: an unknown policy or option (the message lists those there are), a value of another type, a missing
            value, or values that the policy itself refuses.
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
    except (ValueError, TypeError) as error:  # the policy checks its options, or one without a default is missing
        raise UserError(str(error), where="--options") from None


def run_policy_file(file: str) -> None:
    """Run a Python file of the user's, which registers policies (``--register``).

    Args:
        file: its path; ``~`` is expanded.

    Raises:
        UserError: it can't be found or it raises. The message names the last line of that file that was reached.
    """
    path = pathlib.Path(file).expanduser()
    if not path.is_file():
        raise UserError("no such file", where=file, mend="--register takes Python files")
    # The digest of the path keeps two files of the same name apart.
    name = f"jkv_registered_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError("is not a Python file", where=file, mend="its name should end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # ``dataclasses`` looks the module of a class up there
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        # The deepest line of the file itself. A file that can't be parsed has no such frame; its SyntaxError has the
        # line.
        frames = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else frames[-1] if frames else None
        at = file if line is None else f"{file}, line {line}"
        what = error.msg if isinstance(error, SyntaxError) else next(iter(str(error).splitlines()), "")
        raise UserError(f"raises {type(error).__name__}: {what}", where=at, mend="mend the file") from None
