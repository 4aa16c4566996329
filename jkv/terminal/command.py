"""How every command ends. A failure that the user can mend gives one line on stderr and exit code 2, no traceback."""

import contextlib
import io
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from jkv.errors import UserError
from jkv.terminal import termination


def run(main: Callable[[list[str] | None], None], argv: list[str] | None = None) -> NoReturn:
    """Run a command and leave the process.

    The exit code is 0 when it is done, 2 after a failure that the user can mend (UserError, OSError), 130 after Ctrl-C,
    141 when the reader of its output is gone (as in ``... | head``), and 143 after SIGTERM
    (`jkv.terminal.termination`). Any other exception is a bug and keeps its traceback.

    Args:
        main: the command; it takes the arguments, None for those of this process.
        argv: the arguments.
    """
    # A process may be started with closed streams. What is printed is then lost, and nothing else happens.
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # Model text and paths may hold characters that the terminal's encoding lacks: escape them instead of failing.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with termination.handling_sigterm():
        try:
            _run(main, argv)
        except BaseException as error:
            for call in termination.on_failure:
                call(error)
            raise
    sys.exit(0)


def _run(main: Callable[[list[str] | None], None], argv: list[str] | None) -> None:
    try:
        main(argv)
        sys.stdout.flush()
    except UserError as error:
        _leave(str(error), 2)
    except BrokenPipeError:  # the reader has closed the pipe
        _leave("", 141)
    except OSError as error:
        _leave(f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error), 2)
    except termination.Terminated as terminated:
        termination.leave(terminated)
    except KeyboardInterrupt as interrupt:
        _leave(": ".join(["interrupted", *map(str, interrupt.args)]), 130)


def _leave(message: str, code: int) -> NoReturn:
    """Print the last line, and exit."""
    with contextlib.suppress(OSError):
        if message:
            prefix = "error: " if code == 2 else ""
            print(prefix + " ".join(message.split()), file=sys.stderr, flush=True)
    # Text that a closed pipe or a full disk has left in the buffers must not fail again when Python flushes them.
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)
