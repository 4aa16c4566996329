"""Files that are whole or not there at all: written beside their place, then renamed into it.

A process may be killed while it writes, and a disk may be full. What stood under the name before stands there still.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SCRATCH = ".{}.new"  # what is being written, by the name that it will have


@contextlib.contextmanager
def replacing(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """A path to write to, which becomes ``path`` when the block ends well and vanishes when it doesn't.

    Args:
        path: the file to make or to replace.
        sync: whether its bytes are on the disk before it gets its name, so that not even a power cut leaves half of it.

    Raises:
        OSError: it can't be written.
    """
    scratch = path.with_name(SCRATCH.format(path.name))
    try:
        yield scratch
        if sync:
            with open(scratch, "rb") as file:
                os.fsync(file.fileno())
        os.replace(scratch, path)
    except BaseException:
        with contextlib.suppress(OSError):
            scratch.unlink()  # it would keep a full disk full
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all. Raises OSError if it can't be written."""
    with replacing(path) as scratch:
        scratch.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file, newlines as they are, whole or not at all. Raises OSError if it can't be written."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON whole or not at all. Raises OSError if it can't be written."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def remove_scratch(directory: Path) -> None:
    """Remove what killed processes left half-written in a directory that nobody writes to."""
    for left in directory.glob(SCRATCH.format("*")):
        left.unlink(missing_ok=True)
