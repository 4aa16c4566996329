r"""Benchmarks: a YAML file says where the rows are and which columns matter, a format file makes prompts of them.

To add one, write a YAML file and give it as the task, ``--task mine.yaml``:

    hub: organisation/name            # a data set of the Hugging Face hub; or, instead of hub and revision,
    revision: 0123abc...              # its commit, so that the problems never change
    data: problems.jsonl              # a .jsonl, .json, .csv or .parquet file beside the YAML, or a folder of one kind
    subset: name                      # optional: the hub's configuration
    split: test
    problems: 500                     # optional: how many, for `jkv.sweep --dry-run`
    format: mathematics               # or multiple_choice, or a Python file beside the YAML
    columns: {id: uid, problem: question, answer: answer}

Without an id column problems are numbered. Columns may be lists of columns (multiple_choice: wrong). A format of your
own is a file with ``GRADING`` ('exact', 'math' or 'letter'), ``COLUMNS`` (the names it needs beside id) and
``question(fields)``, which returns the user's message and the reference answer; see jkv/tasks/formats. The message
goes through the checkpoint's chat template, with the generation prompt and no system prompt.

A machine without a network reads the same columns from the directory that the environment variable JKV_DATA names,
if that holds NAME.jsonl, NAME.json, NAME.csv, NAME.parquet or a directory NAME: math500.jsonl for the task math500.
"""

import pathlib
import runpy
import types
from collections.abc import Mapping
from typing import Any

from jkv.errors import UserError
from jkv.tasks import dataset_rows
from jkv.tasks.jsonl import prompt_ids
from jkv.tasks.problem import GRADINGS, Problem
from jkv.tasks.spec import BENCHMARKS, SHIPPED, read_yaml


def read_benchmark(name: str, tokenizer: Any, *, limit: int | None = None) -> list[Problem]:
    """The first ``limit`` problems of a benchmark, by its name or its YAML file.

    Raises UserError for a file, row or column that is not as it should be, and for data that can't be had.
    """
    file = SHIPPED / f"{name}.yaml" if name in BENCHMARKS else pathlib.Path(name).expanduser()
    benchmark, name = read_yaml(file), file.stem
    if tokenizer is None:
        mend = "add its tokenizer, or give a FILE.jsonl with prompt_ids"
        raise UserError(f"the model has no tokenizer to read {name} with", where="--task", mend=mend)
    template = _format(benchmark.format, file)
    missing = sorted(set(template.COLUMNS) - set(benchmark.columns))
    if missing:
        mend = f"format {benchmark.format} needs {', '.join(template.COLUMNS)}"
        raise UserError(f"columns name no {missing[0]}", where=str(file), mend=mend)
    given, where = dataset_rows.read(name, benchmark, file)
    problems: list[Problem] = []
    first: dict[str, int] = {}
    for number, row in enumerate(given[:limit], 1):
        place = f"{where}, row {number}"
        fields = _fields(row, benchmark.columns, place)
        id = fields.pop("id", None) or f"{name}-{number:03d}"
        if id in first:
            raise UserError(f"id {id!r} is also in row {first[id]}", where=place, mend="give each row an id of its own")
        first[id] = number
        problems.append(_problem(id, fields, template, tokenizer, place))
    if not problems:
        raise UserError("holds no problem", where=where, mend="give one row a problem")
    return problems


def _problem(id: str, fields: Mapping[str, Any], template: Any, tokenizer: Any, place: str) -> Problem:
    try:
        message, answer = template.question(fields)
    except Exception as error:  # a format may be the user's own
        reason = next(iter(str(error).splitlines()), "")
        what = f"the format fails ({type(error).__name__}: {reason})"
        raise UserError(what, where=place, mend="mend the row or the format") from None
    row = {"messages": [{"role": "user", "content": message}]}
    ids = prompt_ids(row, place, tokenizer, mend="a benchmark needs a model with one")
    if not ids:
        raise UserError("the prompt is empty", where=place, mend="the chat template leaves nothing of the message")
    return Problem(id, tuple(ids), answer, place, template.GRADING)


def _format(name: str, file: pathlib.Path) -> Any:
    """A format shipped with jkv, or a Python file of the user's."""
    if name in ("mathematics", "multiple_choice"):
        from jkv.tasks.formats import mathematics, multiple_choice

        return {"mathematics": mathematics, "multiple_choice": multiple_choice}[name]
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
    return found


def _fields(row: Mapping[str, Any], columns: Mapping[str, str | list[str]], place: str) -> dict[str, Any]:
    """A row's values as text, under the format's names. The id column alone may be absent."""
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
    if column not in row:
        raise UserError(f"there is no column {column!r}", where=place, mend=f"it has {', '.join(map(str, row))}")
    value = row[column]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
        kind = "empty" if value is None or value == "" else f"a {type(value).__name__}"
        raise UserError(f"{column!r} is {kind}, not text or a number", where=place, mend="fill it in")
    return str(value)
