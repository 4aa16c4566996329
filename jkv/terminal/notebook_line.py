"""The progress of a run in a notebook: one line, replaced by each new one, and removed when the run is done."""

import contextlib
import io
from collections.abc import Iterator
from typing import Any


class StatusLine(io.TextIOBase):
    """A text stream of which a notebook shows only the last line written."""

    def __init__(self):
        self._handle: Any = None  # IPython's DisplayHandle, from the first line on

    def write(self, text: str) -> int:
        """Show the last line of ``text``. Returns the characters taken, all of them."""
        if lines := text.strip().splitlines():
            self._show(lines[-1])
        return len(text)

    def clear(self) -> None:
        """Remove the line. The next one appears below what the notebook has shown since."""
        if self._handle is not None:
            self._show("")
            self._handle = None

    def _show(self, line: str) -> None:
        from IPython.display import display  # pyright: ignore[reportMissingImports] (every notebook has it)

        bundle = {"text/plain": line}
        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)


LINE = StatusLine()


@contextlib.contextmanager
def status_line() -> Iterator[None]:
    """Remove the progress line of the block when it ends."""
    try:
        yield
    finally:
        LINE.clear()
