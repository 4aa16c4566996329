"""What a long measurement has found so far: a JSON file that is whole after every cell, and a clock."""

import json
import time
from pathlib import Path
from typing import Any

from jkv.errors import UserError
from jkv.files.whole import write_json


class Record:
    """Cells by name, each written when it is measured. A file of the same run (the same head but for the date) is
    continued: what it holds is not measured again, but for cells marked "again". ``seconds`` is what the run may take.
    """

    def __init__(self, path: Path, head: dict[str, Any], seconds: float):
        self.path, self.head = path, head
        self.cells: dict[str, dict[str, Any]] = {}
        self._ends = time.monotonic() + seconds
        if path.exists():
            try:
                found = json.loads(path.read_text("utf-8"))
                before, cells = found["head"], found["cells"]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"is no record of this command ({error})", where=str(path), mend="delete it") from None
            differs = sorted(name for name in head if name != "date" and before.get(name) != head[name])
            if differs:
                what = f"belongs to another run: {', '.join(differs)} differ"
                raise UserError(what, where=str(path), mend="give another --out")
            self.cells = {name: cell for name, cell in cells.items() if not cell.get("again")}

    @property
    def left(self) -> float:
        """Seconds left."""
        return self._ends - time.monotonic()

    def put(self, name: str, cell: dict[str, Any]) -> None:
        """Keep a cell, on disk before anything else happens."""
        self.cells[name] = cell
        write_json(self.path, {"head": self.head, "cells": self.cells})
