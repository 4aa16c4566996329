"""Command-line flags and YAML from a frozen dataclass: one flag a field, ``--config FILE.yaml`` with the same names."""

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
    """An ArgumentParser that raises UserError."""

    def error(self, message: str) -> NoReturn:
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
    """An instance of ``cls`` from flags; flags override the YAML file of ``--config``, which overrides the defaults.

    Args:
        cls: a dataclass with fields of type str, int, float, bool, Literal, list[str], dict[str, Any] (on the command
            line NAME=VALUE pairs), or one of these | None. The docstring under a field is its help text.
        argv: the arguments, None for those of this process.
        prog: what the command is called in its help.
        description: the help's first lines.
        positional: a field, of list[str], that takes the arguments without a flag.
        like: another dataclass, whose docstrings serve fields that have none of their own.
        groups: titles of the help's sections, and the fields in each; the others come first.

    Raises:
        UserError: an unknown name or a wrong value, in one line.
    """
    # Only flags that are given leave a trace, so that they alone override the file.
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
    for name, value in flags.items():  # text, which strict=False reads
        if _is(dict, kinds[name]):
            value = _pairs(value, "--" + name.replace("_", "-"))
        values[name] = _checked(kinds[name], value, "--" + name.replace("_", "-"), strict=False)
    return cls(**values)


def field_help(cls: type, like: type | None = None) -> dict[str, str]:
    """The docstring under each field of a dataclass, in one line; that of ``like``'s field where it has none."""
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
    choices = [word for part in (kind, *get_args(kind)) for word in get_args(part) if isinstance(word, str)]
    options: dict[str, Any] = {"choices": choices or None}
    if kind in (bool, bool | None):
        options = {"action": argparse.BooleanOptionalAction}
    elif _is(dict, kind) or _is(list, kind):
        options = {"nargs": "+", "metavar": "NAME=VALUE" if _is(dict, kind) else "WORD"}
    section.add_argument("--" + name.replace("_", "-"), help=text, **options)


def from_arguments(cls: type[_C], words: Mapping[str, Any], *, config: str | os.PathLike[str] | None = None) -> _C:
    """An instance of ``cls`` from keyword arguments of Python, named as the flags are with _ for -; they override the
    YAML file ``config``. Paths and tuples may stand for strings and lists. Raises UserError as ``parse`` does.
    """
    kinds = get_type_hints(cls)
    values = _from_file(None if config is None else os.fspath(config), kinds)
    for name, value in words.items():
        if name not in kinds:
            raise UserError(f"unknown argument {name!r}", mend=f"names are config, {', '.join(kinds)}")
        values[name] = _checked(kinds[name], _plain(value), name, strict=False)
    return cls(**values)


def _plain(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return {name: _plain(part) for name, part in value.items()} if isinstance(value, dict) else value


def _from_file(file: str | None, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """What a YAML file sets, checked."""
    values: dict[str, Any] = {}
    for name, value in ({} if file is None else _read(file)).items():
        if name not in kinds:
            raise UserError(f"unknown key {name!r}", where=file or "", mend=f"names are {', '.join(kinds)}")
        values[name] = _checked(kinds[name], value, f"{file}: {name}", strict=True)
    return values


def _is(container: type, kind: Any) -> bool:
    """Whether a field's type is this container, or this container | None."""
    return any(get_origin(part) is container for part in (kind, *get_args(kind)))


def _pairs(words: list[str], where: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise UserError(f"{word!r} is no NAME=VALUE", where=where)
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
    except Exception as error:  # beside its own errors PyYAML lets out ValueError, KeyError, IndexError, RecursionError
        raise UserError(f"can't be read ({error})", where=file) from None
    if not isinstance(values, dict | None):
        raise UserError(f"holds {reprlib.repr(values)}, not one 'name: value' a line", where=file)
    return values or {}


class _Loader(yaml.SafeLoader):
    """Reads '-' in a name as '_' and refuses a name that is set twice: YAML forbids it, PyYAML takes the last."""

    def construct_mapping(self, node, deep=False):
        mapping = {}
        for (at, _), (key, value) in zip(node.value, self.construct_pairs(node, deep=True), strict=True):
            name = str(key).replace("-", "_")
            if name in mapping:
                raise yaml.MarkedYAMLError(problem=f"{name} is set twice", problem_mark=at.start_mark)
            mapping[name] = value
        return mapping
