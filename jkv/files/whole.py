"""Writing a file whole or not at all: it is written under another name in the same directory, then renamed.

A process may be killed while it writes, and a disk may be full. The file that was there before then stays as it was.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SCRATCH = ".{}.new"
"""Name of a file while it is written; {} is the name that it will have."""


@contextlib.contextmanager
def replacing(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """A path to write to. When the block ends, the file there is renamed to ``path``; if it raises, it is removed.

    Args:
        path: the file to make or to replace.
        sync: call fsync before the renaming, so that not even a power cut leaves half a file.

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
            scratch.unlink()  # so that a full disk gets its room back
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all. Raises OSError if it can't be written."""
    with replacing(path) as scratch:
        scratch.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file whole or not at all, without translating newlines. Raises OSError if it can't be written."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all. Raises OSError if it can't be written."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def remove_scratch(directory: Path) -> None:
    """Remove the half-written files that killed processes have left. To be called when nobody writes there."""
    for left in directory.glob(SCRATCH.format("*")):
        left.unlink(missing_ok=True)
