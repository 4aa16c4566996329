"""Problems from a JSONL file, one JSON object a line.

Fields: ``id``, a prompt given as one of ``prompt``, ``messages`` and ``prompt_ids``, and optionally ``answer`` and
``grading``: exact (the same text, the default), math (the same mathematics) or letter (the letter of the right choice).
"""

import json
import pathlib
from typing import TYPE_CHECKING, Any

from jkv.errors import UserError
from jkv.tasks.problem import GRADINGS, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPTS = ("prompt", "messages", "prompt_ids")
FIELDS = ("id", *PROMPTS, "answer", "grading")


def read_jsonl(path: pathlib.Path, tokenizer: "PreTrainedTokenizerBase | None") -> list[Problem]:
    """Read and check all rows. Blank lines are skipped.

    Args:
        path: the file, in UTF-8.
        tokenizer: encodes ``prompt`` as it is (no special tokens are added) and ``messages`` through its chat template.
            None if the model has no tokenizer: then only ``prompt_ids`` without an answer are accepted.

    Raises:
        UserError: the file or a row is missing or wrong; names the first wrong line.
    """
    try:
        # Not splitlines(): it also splits at U+2028 and others, which JSON strings may hold unescaped.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise UserError("no such file", where=str(path), mend="give demo or an existing FILE.jsonl") from None
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 at byte {error.start}", where=str(path), mend="save it as UTF-8") from None
    problems: list[Problem] = []
    first_line: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        problem = _problem(_row(line, where), where, tokenizer)
        if problem.id in first_line:
            mend = "give each row a different id"
            raise UserError(f"id {problem.id!r} is also on line {first_line[problem.id]}", where=where, mend=mend)
        first_line[problem.id] = number
        problems.append(problem)
    if not problems:
        raise UserError("holds no problem", where=str(path), mend='write one JSON object a line: {"id", "prompt"}')
    return problems


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # a number of over 4300 digits raises a plain ValueError
        raise UserError(f"not JSON ({error})", where=where, mend="write one JSON object a line") from None
    if not isinstance(row, dict):
        what = f"is a {type(row).__name__}, not an object"
        raise UserError(what, where=where, mend="write one JSON object a line")
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        what = "has half of a surrogate pair, which is no character"
        raise UserError(what, where=where, mend="write the whole pair") from None
    unknown = sorted(set(row) - set(FIELDS))
    if unknown:
        raise UserError(f"unknown field {unknown[0]!r}", where=where, mend=f"fields are {', '.join(FIELDS)}")
    if not isinstance(row.get("id"), str | int) or isinstance(row.get("id"), bool):
        raise UserError("needs an id, a string or an integer", where=where, mend='add "id"')
    given = [field for field in PROMPTS if field in row]
    if len(given) != 1:
        raise UserError(
            f"has {' and '.join(given) or 'no prompt'}", where=where, mend=f"give one of {', '.join(PROMPTS)}"
        )
    if not isinstance(row.get("answer"), str | int | float | None) or isinstance(row.get("answer"), bool):
        raise UserError("answer must be a string or a number", where=where, mend="write it as text")
    if row.get("grading", "exact") not in GRADINGS:
        raise UserError(f"grading is {row['grading']!r}", where=where, mend=f"give one of {', '.join(GRADINGS)}")
    return row


def _problem(row: dict[str, Any], where: str, tokenizer: "PreTrainedTokenizerBase | None") -> Problem:
    answer = row.get("answer")
    if answer is not None and tokenizer is None:
        mend = "add its tokenizer, or leave the answer out"
        raise UserError("the model has no tokenizer, so the answer can't be graded", where=where, mend=mend)
    ids = prompt_ids(row, where, tokenizer)
    if not ids:
        raise UserError("the prompt is empty", where=where, mend="give at least one token")
    text = None if answer is None else str(answer)
    return Problem(str(row["id"]), tuple(ids), text, where, row.get("grading", "exact"))


def prompt_ids(
    row: dict[str, Any],
    where: str,
    tokenizer: "PreTrainedTokenizerBase | None",
    *,
    mend: str = "give prompt or prompt_ids",
) -> list[int]:
    """Token ids of a row's prompt.

    Args:
        row: has one of ``prompt_ids``, ``prompt`` and ``messages``.
        where: the row's place, for error messages.
        tokenizer: None is an error, but for ``prompt_ids``.
        mend: what the error advises if the tokenizer has no chat template.

    Returns:
        The ids; empty for an empty prompt.

    Raises:
        UserError: the field has the wrong type, or the tokenizer or its chat template is missing or fails.
    """
    if "prompt_ids" in row:
        ids = row["prompt_ids"]
        if not isinstance(ids, list) or any(not isinstance(i, int) or isinstance(i, bool) for i in ids):
            raise UserError("prompt_ids must be a list of integers", where=where, mend="give token ids")
        return ids
    if tokenizer is None:
        raise UserError("the model has no tokenizer to read text with", where=where, mend="give prompt_ids")
    if "prompt" in row:
        if not isinstance(row["prompt"], str):
            raise UserError("prompt must be a string", where=where, mend="use messages for a chat")
        return list(tokenizer.encode(row["prompt"], add_special_tokens=False))
    messages = row["messages"]
    if not isinstance(messages, list) or not all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in messages
    ):
        example = '[{"role": "user", "content": "..."}]'
        raise UserError("messages must be a list of {role, content}", where=where, mend=example)
    if not messages:
        return []
    if not tokenizer.chat_template:
        raise UserError("the model's tokenizer has no chat template", where=where, mend=mend)
    try:
        text = str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
    except Exception as error:  # the template is the checkpoint's and may raise anything
        raise UserError(
            f"the chat template refuses the messages ({error})", where=where, mend="check the roles"
        ) from None
    return list(tokenizer.encode(text, add_special_tokens=False))
