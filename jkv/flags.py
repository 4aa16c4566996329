"""Command-line flags and YAML from a frozen dataclass: one flag a field, ``--config FILE.yaml`` with the same names."""

import argparse
import os
import reprlib
from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar, get_args, get_origin, get_type_hints

import pydantic
import yaml

from jkv import shipped
from jkv.errors import UserError

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
    help: Mapping[str, str],
    positional: str | None = None,
) -> _C:
    """An instance of ``cls`` from flags; flags override the YAML file, which overrides the defaults.

    cls: a dataclass with fields of type str, int, float, bool, Literal, list[str], dict[str, Any] (on the command line
    NAME=VALUE words), or one of these | None.  help: a text for every field.  positional: a field, of list[str], that
    takes the words without a flag.  Raises UserError for an unknown name or a wrong value, in one line.
    """
    # Only flags that are given leave a trace, so that they alone override the file.
    parser = Parser(prog=prog, description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("--config", metavar="FILE.yaml", help="the flags below as 'name: value'; flags override it")
    kinds = get_type_hints(cls)
    for name, kind in kinds.items():
        text, default = help[name].replace("%", "%%"), getattr(cls, name, None)
        if default is not None and default is not False:
            text += f" (default: {default})"
        words = [word for part in (kind, *get_args(kind)) for word in get_args(part) if isinstance(word, str)]
        boolean = {"action": argparse.BooleanOptionalAction}
        many = {"nargs": "+", "metavar": "NAME=VALUE" if _is(dict, kind) else "WORD"}
        options: dict[str, Any] = boolean if kind in (bool, bool | None) else {"choices": words or None}
        options = many if _is(dict, kind) or _is(list, kind) else options
        if name == positional:
            parser.add_argument(name, help=text, nargs="*", metavar=name.upper().removesuffix("S"))
            continue
        parser.add_argument("--" + name.replace("_", "-"), help=text, **options)
    flags = vars(parser.parse_args(argv))

    values = _from_file(flags.pop("config", None), kinds)
    for name, value in flags.items():  # text, which strict=False reads
        if _is(dict, kinds[name]):
            value = _pairs(value, "--" + name.replace("_", "-"))
        values[name] = _checked(kinds[name], value, "--" + name.replace("_", "-"), strict=False)
    return cls(**values)


def from_words(cls: type[_C], words: Mapping[str, Any], *, config: str | os.PathLike[str] | None = None) -> _C:
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
