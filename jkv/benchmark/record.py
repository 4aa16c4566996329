"""The record of a long measurement: a JSON file that is rewritten after every cell, and the time that is left."""

import json
import time
from pathlib import Path
from typing import Any

from jkv.errors import UserError
from jkv.files.whole import write_json


class Record:
    """Cells (figures of one measurement each) by name, in a file that is written after every one of them.

    A file that is there already is continued if its head is the same but for the date: its cells are not measured
    again, except those that have "again" set.

    Args:
        path: the JSON file.
        head: what the cells have in common: the device, the versions, the date.
        seconds: how long the measurement may take, from now.

    Raises:
        UserError: the file isn't such a record, or one of another head.
    """

    def __init__(self, path: Path, head: dict[str, Any], seconds: float) -> None:
        self.path, self.head = path, head
        self.cells: dict[str, dict[str, Any]] = {}
        self._ends = time.monotonic() + seconds
        if path.exists():
            try:
                found = json.loads(path.read_text("utf-8"))
                before, cells = found["head"], found["cells"]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"is not a record of this command ({error})", where=str(path), mend="delete it"
                ) from None
            differs = sorted(name for name in head if name != "date" and before.get(name) != head[name])
            if differs:
                what = f"belongs to another run: {', '.join(differs)} differ"
                raise UserError(what, where=str(path), mend="give another --out")
            self.cells = {name: cell for name, cell in cells.items() if not cell.get("again")}

    @property
    def left(self) -> float:
        """Seconds that are left; negative when the time is over."""
        return self._ends - time.monotonic()

    def put(self, name: str, cell: dict[str, Any]) -> None:
        """Add a cell. It is in the file when this returns."""
        self.cells[name] = cell
        write_json(self.path, {"head": self.head, "cells": self.cells})
