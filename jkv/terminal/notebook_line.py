"""What a run says of its progress in a notebook: one line, written over, and gone when the run is done."""

import contextlib
import io
from collections.abc import Iterator
from typing import Any


class StatusLine(io.TextIOBase):
    """A stream of which a notebook shows the last line only."""

    def __init__(self):
        self._handle: Any = None

    def write(self, text: str) -> int:
        """Show the last line of ``text``."""
        if lines := text.strip().splitlines():
            self._show(lines[-1])
        return len(text)

    def clear(self) -> None:
        """Show nothing; what is written next gets a place of its own."""
        if self._handle is not None:
            self._show("")
            self._handle = None

    def _show(self, line: str) -> None:
        from IPython.display import display  # pyright: ignore[reportMissingImports] (there where a notebook is)

        bundle = {"text/plain": line}
        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)


LINE = StatusLine()


@contextlib.contextmanager
def status_line() -> Iterator[None]:
    """After the block, what it said of its progress is gone."""
    try:
        yield
    finally:
        LINE.clear()
