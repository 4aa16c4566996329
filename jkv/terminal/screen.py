"""The console of a command, and what it shows while something takes long."""

import contextlib
from collections.abc import Iterator
from typing import IO, Any, cast

from rich.console import Console
from rich.text import Text

from jkv.terminal.notebook_line import LINE
from jkv.terminal.text import visible


class Screen(Console):
    """A rich Console with two differences.

    A closed pipe raises BrokenPipeError, for which `jkv.terminal.command` ends quietly; rich would exit with code 1.
    In a notebook, text for stderr goes to a single line (`jkv.terminal.notebook_line`).
    """

    def __init__(self, **settings: Any):
        """
        Args:
            settings: as for rich's Console.
        """
        if settings.get("stderr") and Console().is_jupyter:
            settings |= {"file": cast(IO[str], LINE), "force_jupyter": False, "force_terminal": False}
        super().__init__(**settings)

    def on_broken_pipe(self) -> None:
        """Called by rich while it handles a BrokenPipeError, which is raised again."""
        raise


def human_bytes(n: int | float) -> str:
    """1536 -> '1.5 KiB'. GiB is the largest unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024 or unit == "GiB":
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:,.1f} {unit}"
        n /= 1024
    raise AssertionError


@contextlib.contextmanager
def busy(what: str, *, quiet: bool) -> Iterator[None]:
    """While the block runs, a terminal shows a spinner.

    Args:
        what: the text beside it, such as 'loading demo-llama'.
        quiet: show nothing.
    """
    screen = Screen(stderr=True, quiet=quiet)
    with contextlib.ExitStack() as stack:
        if screen.is_terminal and not screen.is_dumb_terminal and not quiet:
            stack.enter_context(screen.status(Text(visible(what)), spinner="line"))
        yield
