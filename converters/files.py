"""JSON in and out, and writes that a crash never leaves half done."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from jkv.errors import UserError


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError when it isn't there, isn't JSON, or isn't an object."""
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
    """Write ``data`` as indented JSON, all or nothing."""
    with replacing(path) as file:
        file.write((json.dumps(data, indent=2) + "\n").encode())


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that becomes ``path`` when the block ends well, and vanishes when it doesn't."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
