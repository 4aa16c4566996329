"""The JSON files of checkpoints."""

import json
from pathlib import Path
from typing import Any

from jkv.errors import UserError
from jkv.files.whole import replacing


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: the file isn't there, can't be read, isn't JSON, or holds something else than an object.
    """
    try:
        data = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError("no such file", where=str(path)) from None
    except OSError as error:
        raise UserError(f"can't be read ({error.strerror})", where=str(path)) from None
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise UserError(f"isn't JSON ({error})", where=str(path)) from None
    if not isinstance(data, dict):
        raise UserError(f"holds a {type(data).__name__}, expected a JSON object", where=str(path))
    return data


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write indented JSON, whole or not at all. It is on the disk when this returns."""
    with replacing(path, sync=True) as scratch:
        scratch.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
