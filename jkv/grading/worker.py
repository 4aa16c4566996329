"""The worker's side of the grader: one line of JSON in, one line out, until end of file.

It limits its own memory, and before each answer sets an alarm that ends it a little after the caller would have: a
worker whose caller is gone doesn't compute on. Once all is imported it gives up compiling source text, starting
processes, opening connections and opening files for writing, so that no string can make any library do that.
"""

import json
import math
import os
import signal
import sys

# Seconds after its limit at which a worker ends by itself.
GRACE_S = 2

_REFUSED = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "os.remove", "os.rename", "os.mkdir",
            "os.rmdir", "os.kill", "os.putenv", "subprocess.Popen", "socket.", "shutil.", "ctypes.dlopen", "pty.",
            "webbrowser.", "urllib.", "ftplib.", "smtplib.")  # fmt: skip
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def main(argv: list[str]) -> None:
    """Serve answers: [answer, reference] in, {"correct": bool} out. ``argv``: command, paths, limit, memory."""
    limit, memory = float(argv[2]), int(argv[3])
    # The pipe is for answers alone; whatever prints goes nowhere.
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
    except (ImportError, ValueError, OSError):  # not on this platform, or a lower limit is set already
        return


def forbid_execution() -> None:
    """From here on, refuse to run source text and to touch the world outside. It can't be taken back."""

    def hook(event: str, arguments: tuple) -> None:
        if event == "compile" and not _trusted():
            raise PermissionError("the grader runs no text")
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES:
            raise PermissionError("the grader writes no file")
        if event.startswith(_REFUSED):
            raise PermissionError(f"the grader doesn't {event}")

    sys.addaudithook(hook)


def _trusted() -> bool:
    """Whether what is compiled is no text of an answer: a module that is being imported (named tuples are made of
    text), or sympy's arithmetic of monomials, which it writes from the number of variables alone.
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
