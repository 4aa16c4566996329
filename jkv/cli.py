"""What every command does with a failure that the user can mend: one line on stderr, exit code 2, no traceback."""

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from jkv.errors import UserError


def run(main: Callable[[list[str] | None], None], argv: list[str] | None = None) -> NoReturn:
    """Run a command and leave the process: 0 done, 2 a mistake the user can mend, 130 interrupted.

    ``main`` parses its arguments with a parser that raises (``exit_on_error=False``); None means ``sys.argv``.
    Any other exception is a bug and keeps its traceback.
    """
    try:
        main(argv)
        sys.stdout.flush()
    except (UserError, argparse.ArgumentError) as error:
        _fail(str(error))
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def _fail(message: str) -> NoReturn:
    print("error:", " ".join(message.split()), file=sys.stderr)
    sys.exit(2)
