"""Command-line flags and YAML from a frozen dataclass: one flag a field, ``--config FILE.yaml`` with the same names."""

import argparse
import dataclasses
import math
import pathlib
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

import yaml

from jkv.errors import UserError

_C = TypeVar("_C")


def parse(cls: type[_C], argv: list[str] | None, *, prog: str, description: str | None, help: Mapping[str, str]) -> _C:
    """An instance of ``cls`` from flags; flags override the YAML file, which overrides the defaults.

    cls: a dataclass with fields of type str, int, float, bool, Literal, or one of these | None.  help: a text for every
    field.  Raises UserError for an unknown name or a wrong value, in one line.
    """
    given = vars(_parser(cls, prog, description, help).parse_args(sys.argv[1:] if argv is None else argv))
    file = given.pop("config", None)
    return cls(**{**({} if file is None else read_yaml(cls, pathlib.Path(file))), **given})


def read_yaml(cls: type, path: pathlib.Path) -> dict[str, Any]:
    """The fields of ``cls`` that a YAML file sets, checked. Names may be written with '-' or '_'.

    Raises UserError naming the file and what is wrong in it.
    """
    where = str(path)
    try:
        values = yaml.load(path.read_text("utf-8"), _Loader)
    except OSError as error:
        raise UserError((error.strerror or str(error)).lower(), where=where, mend="give a YAML file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 at byte {error.start}", where=where, mend="save it as UTF-8") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: a date that is none
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        where = where if line is None else f"{where}:{line + 1}"
        reason = getattr(error, "problem", None) or str(error) or type(error).__name__
        raise UserError(f"can't be read as YAML ({reason})", where=where) from None
    if values is None:  # nothing but comments
        return {}
    if not isinstance(values, dict):
        raise UserError(f"holds {_named(values)}, not a mapping", where=where, mend="write one 'name: value' a line")
    kinds = {field.name: field.type for field in dataclasses.fields(cls)}
    checked: dict[str, Any] = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in kinds:
            raise UserError(f"unknown key {key!r}", where=where, mend=f"names are {', '.join(kinds)}")
        if name in checked:
            raise UserError(f"sets {name} twice", where=where, mend="keep one")
        try:
            checked[name] = _checked(kinds[name], value)
        except ValueError:
            raise UserError(f"expected {_expected(kinds[name])}, got {value!r}", where=f"{where}: {key}") from None
    return checked


class _Loader(yaml.SafeLoader):
    """Refuses a mapping that sets a key twice: YAML forbids it, PyYAML takes the last."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str):
                if key in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key!r} is set twice", key_node.start_mark)
                seen.add(key)
        return super().construct_mapping(node, deep)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message.removeprefix("argument "), mend="see --help")


def _parser(cls: type, prog: str, description: str | None, help: Mapping[str, str]) -> argparse.ArgumentParser:
    # Only flags that are given leave a trace, so that they alone override the file.
    parser = _Parser(prog=prog, description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.add_argument(
        "--config", metavar="FILE.yaml", help="any of the flags below as 'name: value'; flags override it"
    )
    for field in dataclasses.fields(cls):
        name, kind = "--" + field.name.replace("_", "-"), field.type
        text = help[field.name].replace("%", "%%")
        if field.default is not None and field.default is not False:
            text += f" (default: {field.default})"
        if kind in (bool, bool | None):
            parser.add_argument(name, action=argparse.BooleanOptionalAction, help=text)
        else:
            choices = _choices(kind)
            metavar = "{" + ",".join(choices) + "}" if choices else field.name.split("_")[-1].upper()
            parser.add_argument(name, type=_from_text(kind), metavar=metavar, help=text)
    return parser


def _from_text(kind: Any) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        for basic in _basic(kind):
            if basic in (int, float):
                try:
                    return _checked(kind, basic(text))
                except ValueError:
                    continue
        try:
            return _checked(kind, text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected {_expected(kind)}, got {text!r}") from None

    return convert


def _checked(kind: Any, value: Any) -> Any:
    """``value``, an integer as float where a number is asked for. Raises ValueError if it isn't of that kind."""
    if value is None and types.NoneType in _members(kind):
        return None
    if value in _choices(kind):
        return value
    for basic in _basic(kind):
        if basic is float and isinstance(value, int | float) and type(value) is not bool:
            if math.isfinite(value):
                return float(value)
        elif type(value) is basic:
            return value
    raise ValueError


def _members(kind: Any) -> tuple[Any, ...]:
    union = isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union
    return typing.get_args(kind) if union else (kind,)


def _basic(kind: Any) -> tuple[type, ...]:
    return tuple(member for member in _members(kind) if member in (str, int, float, bool))


def _choices(kind: Any) -> tuple[str, ...]:
    return tuple(x for m in _members(kind) if typing.get_origin(m) is typing.Literal for x in typing.get_args(m))


def _expected(kind: Any) -> str:
    names = {int: "an integer", float: "a number", str: "text", bool: "true or false"}
    return " or ".join([*_choices(kind), *(names[basic] for basic in _basic(kind))])


def _named(value: Any) -> str:
    return "a list" if isinstance(value, list) else f"the {type(value).__name__} {value!r}"
