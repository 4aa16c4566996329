"""Command-line flags and YAML from a frozen dataclass: one flag a field, ``--config FILE.yaml`` with the same names."""

import argparse
import dataclasses
import re
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

import jsonargparse

from jkv.errors import UserError

_C = TypeVar("_C")


def parse(cls: type[_C], argv: list[str] | None, *, prog: str, description: str | None, help: Mapping[str, str]) -> _C:
    """An instance of ``cls`` from flags; flags override the YAML file, which overrides the defaults.

    help: a text for every field.  Raises UserError for an unknown name or a wrong value, in one line.
    """
    arguments = sys.argv[1:] if argv is None else argv
    parser = _parser(cls, prog, description, help)
    try:
        values = parser.parse_args(arguments).as_dict()
    except argparse.ArgumentError as error:
        raise _explained(cls, str(error), arguments) from None
    values.pop("config", None)
    return cls(**values)


def _parser(cls: type, prog: str, description: str | None, help: Mapping[str, str]) -> jsonargparse.ArgumentParser:
    flags = jsonargparse.ArgumentParser(prog=prog, description=description, exit_on_error=False)
    flags.add_argument("--config", action="config", help="YAML file with any of the flags below")
    for field in dataclasses.fields(cls):
        name, text = "--" + field.name.replace("_", "-"), help[field.name]
        if field.type == (bool | None):
            yes_no = jsonargparse.ActionYesNo(no_prefix="no-")
            flags.add_argument(name, action=yes_no, default=field.default, help=text)
        elif field.type is bool:
            flags.add_argument(name, action="store_true", default=field.default, help=text)
        else:
            flags.add_argument(name, type=field.type, default=field.default, help=text)
    return flags


def _explained(cls: type, message: str, arguments: list[str]) -> UserError:
    file = _config_file(arguments)
    if unknown := re.search(r"Option '([^']+)' is not accepted", message):
        mend = f"names are {', '.join(f.name for f in dataclasses.fields(cls))}"
        return UserError(f"unknown key {unknown[1]!r}", where=file or "--config", mend=mend)
    if "File does not exist" in message or "Unable to load config" in message:
        return UserError("can't be read as YAML" if "Unable" in message else "no such file", where=file or "--config")
    if key := re.search(r'Parser key "(\w+)"', message):
        for field in dataclasses.fields(cls):
            if field.name == key[1]:
                value = re.search(r"(?:Given value: |Got value: )(.*)", message)
                got = f", got {value[1].strip()!r}" if value else ""
                flag = "--" + field.name.replace("_", "-")
                where = flag if any(a.split("=")[0] == flag for a in arguments) else f"{file}: {field.name}" if file else flag
                return UserError(f"expected {_expected(field.type)}{got}", where=where)
    return UserError(message, mend="see --help")


def _config_file(arguments: list[str]) -> str:
    for index, argument in enumerate(arguments):
        if argument == "--config" and index + 1 < len(arguments):
            return arguments[index + 1]
        if argument.startswith("--config="):
            return argument.removeprefix("--config=")
    return ""


def _expected(kind: Any) -> str:
    names = {int: "an integer", float: "a number", str: "text", bool: "true or false", types.NoneType: ""}
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(map(str, typing.get_args(kind)))
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return " or ".join(filter(None, map(_expected, typing.get_args(kind))))
    return names.get(kind, str(kind))
