"""The console of a command: it leaves closed pipes to the command, and says what it is waiting for."""

import contextlib
from collections.abc import Iterator
from typing import IO, Any, cast

from rich.console import Console
from rich.text import Text

from jkv.terminal.notebook_line import LINE
from jkv.terminal.text import visible


class Screen(Console):
    """A console that leaves a closed pipe to the command, which ends quietly (rich would exit with code 1).

    In a notebook, what goes to stderr is one line that is written over.
    """

    def __init__(self, **settings: Any):
        if settings.get("stderr") and Console().is_jupyter:
            settings |= {"file": cast(IO[str], LINE), "force_jupyter": False, "force_terminal": False}
        super().__init__(**settings)

    def on_broken_pipe(self) -> None:
        """Called by rich while it handles the BrokenPipeError."""
        raise


def human_bytes(n: int | float) -> str:
    """1536 -> '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024 or unit == "GiB":
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:,.1f} {unit}"
        n /= 1024
    raise AssertionError


@contextlib.contextmanager
def busy(what: str, *, quiet: bool) -> Iterator[None]:
    """While the block runs, a terminal shows ``what``: reading a large model takes minutes."""
    screen = Screen(stderr=True, quiet=quiet)
    with contextlib.ExitStack() as stack:
        if screen.is_terminal and not screen.is_dumb_terminal and not quiet:
            stack.enter_context(screen.status(Text(visible(what)), spinner="line"))
        yield
