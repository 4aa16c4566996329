"""A command's configuration, a frozen dataclass, from command-line flags, a YAML file or Python's keyword arguments.

There is one flag for each field, with ``-`` for ``_``; ``--config FILE.yaml`` names a file with the same names.
"""

import argparse
import os
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeVar, get_args, get_origin, get_type_hints

import docstring_parser
import pydantic
import yaml

from jkv.errors import UserError
from jkv.files import shipped

_C = TypeVar("_C")


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are UserErrors."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse for wrong arguments, where it would print its usage and exit."""
        raise UserError(message)


def parse(
    cls: type[_C],
    argv: list[str] | None,
    *,
    prog: str,
    description: str | None,
    positional: str | None = None,
    like: type | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
) -> _C:
    """A configuration from flags. They override the YAML file of ``--config``, which overrides the defaults.

    Args:
        cls: a dataclass with fields of type str, int, float, bool, Literal, list[str], dict[str, Any] (on the command
            line NAME=VALUE pairs), or one of these | None. The docstring under a field is its help text; defaults
            other than None and False are added to it.
        argv: the arguments, None for those of this process.
        prog: the command's name in its help.
        description: the help's first lines.
        positional: a field of type list[str] that takes the arguments without a flag.
        like: another dataclass. A field without a docstring has that of its field of the same name.
        groups: titles of the help's sections, and the fields in each. Fields in no section come first.

    Returns:
        The instance. Flags that are not given leave the file's value or the default.

    Raises:
        UserError: an unknown name or a wrong value, in one line.
    """
    # SUPPRESS: flags that are not given don't appear among the results, so only given ones override the file.
    parser = Parser(prog=prog, description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("--config", metavar="FILE.yaml", help="the flags below as 'name: value'; flags override it")
    kinds, texts = get_type_hints(cls), field_help(cls, like)
    own = [name for name in kinds if not any(name in names for names in (groups or {}).values())]
    sections = {"": own, **{title: [n for n in names if n in kinds] for title, names in (groups or {}).items()}}
    for title, names in sections.items():
        section = parser.add_argument_group(title) if title and names else parser
        for name in names:
            _add_flag(section, name, kinds[name], texts[name], getattr(cls, name, None), positional=name == positional)
    flags = vars(parser.parse_args(argv))

    values = _from_file(flags.pop("config", None), kinds)
    for name, value in flags.items():  # text: strict=False lets pydantic turn it into numbers
        if _is(dict, kinds[name]):
            value = _pairs(value, "--" + name.replace("_", "-"))
        values[name] = _checked(kinds[name], value, "--" + name.replace("_", "-"), strict=False)
    return cls(**values)


def field_help(cls: type, like: type | None = None) -> dict[str, str]:
    """The docstring under each field of a dataclass, in one line, by the field's name.

    Args:
        cls: the dataclass.
        like: another one, whose docstrings stand in for missing ones.

    Raises:
        KeyError: a field has a docstring in neither.
    """
    inherited = {} if like is None or like is cls else field_help(like)
    own = {p.arg_name: " ".join((p.description or "").split()) for p in docstring_parser.parse_from_object(cls).params}
    return {name: own.get(name) or inherited[name] for name in get_type_hints(cls)}


def _add_flag(
    section: argparse._ActionsContainer, name: str, kind: Any, text: str, default: Any, *, positional: bool
) -> None:
    text = text.replace("%", "%%")
    if default is not None and default is not False:
        text += f" (default: {default})"
    if positional:
        section.add_argument(name, help=text, nargs="*", metavar=name.upper().removesuffix("S"))
        return
    choices = [value for part in (kind, *get_args(kind)) for value in get_args(part) if isinstance(value, str)]
    options: dict[str, Any] = {"choices": choices or None}
    if kind in (bool, bool | None):
        options = {"action": argparse.BooleanOptionalAction}
    elif _is(dict, kind) or _is(list, kind):
        options = {"nargs": "+", "metavar": "NAME=VALUE" if _is(dict, kind) else "WORD"}
    section.add_argument("--" + name.replace("_", "-"), help=text, **options)


def from_arguments(cls: type[_C], arguments: Mapping[str, Any], *, config: str | os.PathLike[str] | None = None) -> _C:
    """A configuration from keyword arguments of Python. They override the YAML file, which overrides the defaults.

    Args:
        cls: the dataclass, as for `parse`.
        arguments: values by field. A path is taken for a string, a tuple for a list.
        config: a YAML file.

    Raises:
        UserError: an unknown name or a wrong value, in one line.
    """
    kinds = get_type_hints(cls)
    values = _from_file(None if config is None else os.fspath(config), kinds)
    for name, value in arguments.items():
        if name not in kinds:
            raise UserError(f"unknown argument {name!r}", mend=f"names are config, {', '.join(kinds)}")
        values[name] = _checked(kinds[name], _plain(value), name, strict=False)
    return cls(**values)


def _plain(value: Any) -> Any:
    """A value as YAML would give it: strings for paths, lists for tuples."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return {name: _plain(part) for name, part in value.items()} if isinstance(value, dict) else value


def _from_file(file: str | None, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """The values that a YAML file sets, checked."""
    values: dict[str, Any] = {}
    for name, value in ({} if file is None else _read(file)).items():
        if name not in kinds:
            raise UserError(f"unknown key {name!r}", where=file or "", mend=f"names are {', '.join(kinds)}")
        values[name] = _checked(kinds[name], value, f"{file}: {name}", strict=True)
    return values


def _is(container: type, kind: Any) -> bool:
    """Whether a field's type is this container, or this container | None."""
    return any(get_origin(part) is container for part in (kind, *get_args(kind)))


def _pairs(texts: list[str], where: str) -> dict[str, str]:
    """['a=1', 'b=2'] -> {'a': '1', 'b': '2'}."""
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UserError(f"{text!r} is no NAME=VALUE", where=where)
        if name in pairs:
            raise UserError(f"{name} is set twice", where=where)
        pairs[name] = value
    return pairs


def _checked(kind: Any, value: Any, where: str, *, strict: bool) -> Any:
    try:
        return pydantic.TypeAdapter(kind, config={"allow_inf_nan": False}).validate_python(value, strict=strict)
    except pydantic.ValidationError as error:
        raise UserError(f"{error.errors()[0]['msg']}, got {reprlib.repr(value)}", where=where) from None


def _read(file: str) -> dict[str, Any]:
    try:
        with open(shipped.find(file), encoding="utf-8") as stream:
            values = yaml.load(stream, _Loader)
    except Exception as error:  # PyYAML's own, and ValueError, KeyError, IndexError, RecursionError, which it lets out
        raise UserError(f"can't be read ({error})", where=file) from None
    if not isinstance(values, dict | None):
        raise UserError(f"holds {reprlib.repr(values)}, not one 'name: value' a line", where=file)
    return values or {}


class _Loader(yaml.SafeLoader):
    """Reads '-' in a name as '_' and refuses a name that is set twice, as YAML 1.2 demands (section 3.2.1.1); PyYAML
    takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Called by PyYAML for each mapping."""
        mapping = {}
        for (at, _), (key, value) in zip(node.value, self.construct_pairs(node, deep=True), strict=True):
            name = str(key).replace("-", "_")
            if name in mapping:
                raise yaml.MarkedYAMLError(problem=f"{name} is set twice", problem_mark=at.start_mark)
            mapping[name] = value
        return mapping
