"""The files of a run's directory and how their lines are read, both by the run that continues them and by those that
only look at them.

Nothing here needs JAX, so a run can be looked at on a machine that has neither its model nor an accelerator.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SAMPLES, TRACE, SUMMARY, CONFIG, TIMINGS = (
    "samples.jsonl", "trace.jsonl", "summary.json", "config.json", "timings.json",
)  # fmt: skip
_NUMBER, _INTEGER = (int, float), (int,)
# The fields of a line that say which sample it belongs to; samples.jsonl and trace.jsonl both have them.
KEY_FIELDS: dict[str, tuple[type, ...]] = {"id": (str,), "sample": _INTEGER}
# The fields of a line of samples.jsonl, and the types that each may have.
SAMPLE_FIELDS: dict[str, tuple[type, ...]] = {
    **KEY_FIELDS, "prompt_tokens": _INTEGER, "token_ids": (list,), "text": (str,), "finish": (str,),
    "answer": (str, type(None)), "correct": (bool, type(None)), "evictions": _INTEGER, "peak_slots": _INTEGER,
    "mean_slots": _NUMBER,
}  # fmt: skip


def whole_lines(data: bytes) -> tuple[list[bytes], bytes]:
    """Split the bytes of a JSONL file.

    Returns:
        The lines that end in a newline, without it, and the bytes after the last newline. These are empty unless the
        last line is still being written or was torn by a kill or a full disk.
    """
    *lines, rest = data.split(b"\n")
    return lines, rest


def json_object(line: bytes, fields: Mapping[str, tuple[type, ...]] | None = None) -> dict[str, Any] | None:
    """The JSON object in ``line``.

    Args:
        line: UTF-8 text, as `whole_lines` gives it, or a whole JSON file.
        fields: names that the object must have, and the types that each value may have. A bool is no int here.

    Returns:
        The object; None if the line holds none, or one without these fields.
    """
    try:
        value = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):  # text that is not UTF-8 or not JSON raises a subclass of ValueError
        return None
    if not isinstance(value, dict):
        return None
    # ``...`` stands for a missing field: JSON has no value of its type.
    return value if all(type(value.get(name, ...)) in kinds for name, kinds in (fields or {}).items()) else None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Every line of a JSONL file that jkv has finished writing, in the file's order.

    Raises:
        OSError: it can't be read.
        ValueError: a line is no JSON.
    """
    return [json.loads(line) for line in whole_lines(path.read_bytes())[0]]
