r"""Benchmarks: a YAML file names the data set and its columns, and a format file turns each row into a prompt.

To add a benchmark, write a YAML file and give it as the task (``--task my_benchmark.yaml``):

    hub: organisation/name            # a data set on the Hugging Face Hub
    revision: 0123abc...              # its commit, so that the problems never change (default: main)
    subset: name                      # optional: which configuration of the data set
    split: test                       # the default
    gated: true                       # optional: the Hub asks users to accept terms first, so errors mention them
    problems: 500                     # optional: how many there are, for `jkv.sweep --dry-run`
    format: mathematics               # or multiple_choice, or a Python file beside the YAML
    columns: {id: uid, problem: question, answer: answer}

Instead of ``hub``, ``data: problems.jsonl`` names a .jsonl, .json, .csv or .parquet file beside the YAML, or a folder
of such files of one kind.

``columns`` maps the format's names to the data set's columns; a name may also map to a list of columns
(multiple_choice: wrong). Without an id column problems are numbered. A custom format is a Python file with
``GRADING`` ('exact', 'math' or 'letter'), ``COLUMNS`` (the names it needs, without id) and ``question(fields)``, which
returns the user's message and the reference answer; jkv/tasks/formats has two examples. The message goes through the
checkpoint's chat template, with the generation prompt and without a system prompt.

The environment variable JKV_DATA lets a machine without a network run the Hub's benchmarks. If the directory that it
names holds NAME.jsonl, NAME.json, NAME.csv, NAME.parquet or a directory NAME (math500.jsonl for the task math500), its
rows, with the same columns, are read instead of the Hub's.
"""

import dataclasses
import pathlib
import runpy
import types
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from jkv.errors import UserError
from jkv.tasks import dataset_rows
from jkv.tasks.jsonl import prompt_ids
from jkv.tasks.problem import GRADINGS, Grading, Problem
from jkv.tasks.spec import BENCHMARKS, SHIPPED, read_yaml

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclasses.dataclass(frozen=True)
class _Format:
    """What a format file defines: GRADING, COLUMNS and question."""

    grading: Grading
    columns: tuple[str, ...]
    question: Callable[[Mapping[str, Any]], tuple[str, str]]


def read_benchmark(
    name: str, tokenizer: "PreTrainedTokenizerBase | None", *, limit: int | None = None
) -> list[Problem]:
    """Read the problems of a benchmark.

    Args:
        name: a shipped benchmark's name, or the path of a YAML file.
        tokenizer: of the model that is to read the prompts; None is an error.
        limit: read only the first so many problems.

    Raises:
        UserError: a file, row or column is missing or wrong, the data can't be loaded, or the model has no tokenizer
            or no chat template.
    """
    file = SHIPPED / f"{name}.yaml" if name in BENCHMARKS else pathlib.Path(name).expanduser()
    benchmark, name = read_yaml(file), file.stem
    if tokenizer is None:
        mend = "add its tokenizer, or give a FILE.jsonl with prompt_ids"
        raise UserError(f"the model has no tokenizer to read {name} with", where="--task", mend=mend)
    template = _format(benchmark.format, file)
    missing = sorted(set(template.columns) - set(benchmark.columns))
    if missing:
        mend = f"format {benchmark.format} needs {', '.join(template.columns)}"
        raise UserError(f"columns has no entry for {missing[0]}", where=str(file), mend=mend)
    rows, where = dataset_rows.read(name, benchmark, file)
    problems: list[Problem] = []
    first: dict[str, int] = {}
    for number, row in enumerate(rows[:limit], 1):
        place = f"{where}, row {number}"
        fields = _fields(row, benchmark.columns, place)
        id = fields.pop("id", None) or f"{name}-{number:03d}"
        if id in first:
            raise UserError(f"id {id!r} is also in row {first[id]}", where=place, mend="give each row a different id")
        first[id] = number
        problems.append(_problem(id, fields, template, tokenizer, place))
    if not problems:
        raise UserError("holds no problem", where=where, mend="add at least one")
    return problems


def _problem(
    id: str, fields: Mapping[str, Any], template: _Format, tokenizer: "PreTrainedTokenizerBase", place: str
) -> Problem:
    try:
        message, answer = template.question(fields)
    except Exception as error:  # a user's format may raise anything
        reason = next(iter(str(error).splitlines()), "")
        what = f"the format fails ({type(error).__name__}: {reason})"
        raise UserError(what, where=place, mend="correct the row or the format") from None
    row = {"messages": [{"role": "user", "content": message}]}
    ids = prompt_ids(row, place, tokenizer, mend="a benchmark needs a model with one")
    if not ids:
        raise UserError("the prompt is empty", where=place, mend="the chat template makes no text of the message")
    return Problem(id, tuple(ids), answer, place, template.grading)


def _format(name: str, file: pathlib.Path) -> _Format:
    """A format shipped with jkv, or a Python file beside the user's YAML ``file``."""
    if name in ("mathematics", "multiple_choice"):
        from jkv.tasks.formats import mathematics, multiple_choice

        shipped = {"mathematics": mathematics, "multiple_choice": multiple_choice}[name]
        return _Format(shipped.GRADING, shipped.COLUMNS, shipped.question)
    path = file.parent / name
    if path.suffix != ".py" or not path.is_file():
        mend = "give mathematics, multiple_choice, or a Python file beside the YAML"
        raise UserError(f"there is no format {name!r}", where=str(file), mend=mend)
    try:
        found = types.SimpleNamespace(**runpy.run_path(str(path)))
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "")
        raise UserError(f"can't be run ({type(error).__name__}: {reason})", where=str(path)) from None
    for attribute in ("GRADING", "COLUMNS", "question"):
        if not hasattr(found, attribute):
            raise UserError(f"has no {attribute}", where=str(path), mend="see jkv/tasks/formats for examples")
    if found.GRADING not in GRADINGS:
        raise UserError(f"GRADING is {found.GRADING!r}", where=str(path), mend=f"give one of {', '.join(GRADINGS)}")
    return _Format(found.GRADING, tuple(found.COLUMNS), found.question)


def _fields(row: Mapping[str, Any], columns: Mapping[str, str | list[str]], place: str) -> dict[str, Any]:
    """A row's values as text under the format's names. Only the id column may be missing."""
    fields: dict[str, Any] = {}
    for name, column in columns.items():
        if name == "id" and isinstance(column, str) and column not in row:
            continue
        if isinstance(column, str):
            fields[name] = _text(row, column, place)
        else:
            fields[name] = [_text(row, each, place) for each in column]
    return fields


def _text(row: Mapping[str, Any], column: str, place: str) -> str:
    """A column's value as text; a float without a fraction (pandas' reading of integers) as the integer."""
    if column not in row:
        raise UserError(f"there is no column {column!r}", where=place, mend=f"it has {', '.join(map(str, row))}")
    value = row[column]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
        kind = "empty" if value is None or value == "" else f"a {type(value).__name__}"
        raise UserError(f"{column!r} is {kind}, not text or a number", where=place, mend="fill it in")
    return str(value)
