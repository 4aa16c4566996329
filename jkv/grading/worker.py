"""The grader's worker process: reads one line of JSON for each answer and writes one line, until end of file.

It limits its own memory. For each answer it sets an alarm that ends the process shortly after the time at which the
client would have ended it, so that a worker whose client is gone doesn't go on computing. After its imports it forbids
itself to compile source text, start processes, open connections and open files for writing: no answer can make a
library do any of that.
"""

import json
import math
import os
import signal
import sys
from typing import Any

# A worker ends by itself this many seconds after an answer's time limit.
GRACE_S = 2

_REFUSED = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "os.remove", "os.rename", "os.mkdir",
            "os.rmdir", "os.kill", "os.putenv", "subprocess.Popen", "socket.", "shutil.", "ctypes.dlopen", "pty.",
            "webbrowser.", "urllib.", "ftplib.", "smtplib.")  # fmt: skip
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def main(argv: list[str]) -> None:
    """Read [answer, reference] lines from stdin and write {"correct": bool} lines to stdout.

    Out of memory, the line is {"correct": null, "reason": "memory"}.

    Args:
        argv: the command, the paths to import from (JSON), seconds an answer may take, bytes of address space.
    """
    limit, memory = float(argv[2]), int(argv[3])
    # Replies alone go to the pipe: what a library prints to stdout goes to stderr, which the client discards.
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    _limit_memory(memory)
    from jkv.grading.mathematics import equal, warm_up

    warm_up()
    forbid_execution()
    replies.write(b"ready\n")
    for line in sys.stdin.buffer:
        answer, reference = json.loads(line)
        signal.alarm(math.ceil(limit) + GRACE_S)
        try:
            reply = {"correct": equal(answer, reference)}
        except MemoryError:
            reply = {"correct": None, "reason": "memory"}
        signal.alarm(0)
        replies.write(json.dumps(reply).encode() + b"\n")


def _limit_memory(size: int) -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (size, size))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):  # the platform has no such limit, or a lower one is set already
        return


def forbid_execution() -> None:
    """From now on, refuse to compile source text, write files, start processes and open connections.

    This holds until the process ends: an audit hook can't be removed (PEP 578). A refused call raises PermissionError.
    """

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        """Called by Python with the name and the arguments of every audited event."""
        if event == "compile" and not _trusted():
            raise PermissionError("the grader compiles no source text")
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES:
            raise PermissionError("the grader writes no file")
        if event.startswith(_REFUSED):
            raise PermissionError(f"the grader forbids {event}")

    sys.addaudithook(hook)


def _trusted() -> bool:
    """Whether the source text being compiled can't come from an answer.

    So it is while a module is imported (collections.namedtuple, for one, compiles text), and in sympy's monomial
    arithmetic, whose source text depends only on the number of variables.
    """
    frame = sys._getframe()
    while frame is not None:
        name, file = frame.f_code.co_name, frame.f_code.co_filename
        if (name, file) == ("_find_and_load", "<frozen importlib._bootstrap>"):
            return True
        if name == "_build" and file.endswith(os.path.join("sympy", "polys", "monomials.py")):
            return True
        frame = frame.f_back
    return False
