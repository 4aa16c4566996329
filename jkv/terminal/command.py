"""What every command does with a failure that the user can mend: one line on stderr, exit code 2, no traceback."""

import contextlib
import io
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from jkv.errors import UserError
from jkv.terminal import termination


def run(main: Callable[[list[str] | None], None], argv: list[str] | None = None) -> NoReturn:
    """Run a command and leave the process: 0 done, 2 a mistake the user can mend, 130 interrupted, 141 reader gone,
    143 terminated (`jkv.terminal.termination`).

    ``main`` takes the arguments; None means ``sys.argv``.
    Any other exception is a bug and keeps its traceback.
    """
    # A process may be started with closed streams; what is said then is lost, nothing else.
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # Model text and paths may hold what the terminal's encoding doesn't: it is escaped, not fatal.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with termination.orderly():
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
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        _leave("", 141)
    except OSError as error:
        _leave(f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error), 2)
    except termination.Terminated as terminated:
        termination.leave(terminated)
    except KeyboardInterrupt as interrupt:
        _leave(": ".join(["interrupted", *map(str, interrupt.args)]), 130)


def _leave(message: str, code: int) -> NoReturn:
    with contextlib.suppress(OSError):
        if message:
            prefix = "error: " if code == 2 else ""
            print(prefix + " ".join(message.split()), file=sys.stderr, flush=True)
    # What a closed pipe or a full disk left in the buffers must not fail again when Python exits.
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)
