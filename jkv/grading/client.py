"""The grader's client: starts the worker process, sends it answers, and replaces a worker that dies or stalls."""

import contextlib
import dataclasses
import json
import os
import select
import subprocess
import sys
import threading
import time
from typing import Any

LIMIT_S = 10.0
MEMORY_BYTES = 2 << 30
# How long a worker may take to start. Importing sympy takes a second or two, but far longer on a busy machine or from a
# network file system.
START_S = 120.0

# The worker gets this process's sys.path, so that it imports the same jkv; -P keeps the working directory off the path.
_COMMAND = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from jkv.grading.worker import main; main(sys.argv)"
)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The outcome of grading one answer.

    Attributes:
        correct: None if the answer could not be graded.
        reason: then says why: timeout, memory, or died (the worker died or could not be started).
    """

    correct: bool | None
    reason: str = ""


class Grader:
    """Compares mathematical answers with references in one long-lived worker process.

    A context manager, and safe to use from several threads. The first answer starts the worker, or ``start`` does so
    in advance. The worker ends with ``close``, or with this process (it then reads end of file); a worker that is busy
    when this process dies ends a few seconds after its answer's time limit.

    Args:
        limit: seconds that one answer may take.
        memory: bytes of address space that the worker may take.
    """

    def __init__(self, *, limit: float = LIMIT_S, memory: int = MEMORY_BYTES):
        self.limit, self.memory = limit, memory
        self._worker: subprocess.Popen[bytes] | None = None
        self._ready, self._closed = False, False
        self._unread = b""
        self._lock = threading.Lock()

    def __enter__(self) -> "Grader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The worker's process id, None if there is no worker."""
        return None if self._worker is None else self._worker.pid

    def start(self) -> None:
        """Start the worker if there is none, without waiting until it is ready. Does nothing after ``close``."""
        if self._worker is not None or self._closed:
            return
        self._ready, self._unread = False, b""
        # A new session, so that Ctrl-C at the terminal reaches only this process, which then ends the worker.
        self._worker = subprocess.Popen(
            [sys.executable, "-P", "-c", _COMMAND, json.dumps(sys.path), str(self.limit), str(self.memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "PYTHONHASHSEED": "0"},  # the order in which sympy simplifies depends on hashes
        )
        assert self._worker.stdin is not None
        os.set_blocking(self._worker.stdin.fileno(), False)

    def grade(self, answer: str, reference: str) -> Verdict:
        """Whether ``answer`` is the same mathematics as ``reference``. Whatever the answer holds, it doesn't raise."""
        with self._lock:
            try:
                self.start()
                if not self._ready:
                    self._read_line(time.monotonic() + START_S)
                    self._ready = True
                # JSON in ASCII can carry every Python string, also one with half of a surrogate pair.
                reply = self._ask(json.dumps([answer, reference]).encode() + b"\n")
            except TimeoutError:
                self._stop()
                return Verdict(None, "timeout" if self._ready else "died")
            except (OSError, EOFError, ValueError, AssertionError):
                self._stop()
                return Verdict(None, "died")
            if reply["correct"] is None:
                self._stop()
            return Verdict(reply["correct"], reply.get("reason", ""))

    def close(self) -> None:
        """End the worker at once, whatever it is doing. Answers that are pending or come later stay ungraded."""
        self._closed = True
        worker = self._worker
        if worker is not None:
            worker.kill()  # before taking the lock, which another thread holds while it waits for the worker
        with self._lock:
            self._stop()

    def _stop(self) -> None:
        worker, self._worker = self._worker, None
        if worker is None:
            return
        worker.kill()
        worker.wait()
        for pipe in (worker.stdin, worker.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):  # closing flushes what a dead worker can't read any more
                pipe.close()

    def _ask(self, line: bytes) -> dict[str, Any]:
        deadline = time.monotonic() + self.limit
        assert self._worker is not None
        assert self._worker.stdin is not None
        pipe = self._worker.stdin.fileno()
        while line:
            self._wait(pipe, select.POLLOUT, deadline)
            line = line[os.write(pipe, line) :]
        return json.loads(self._read_line(deadline))

    def _read_line(self, deadline: float) -> bytes:
        assert self._worker is not None
        assert self._worker.stdout is not None
        pipe = self._worker.stdout.fileno()
        while b"\n" not in self._unread:
            self._wait(pipe, select.POLLIN, deadline)
            more = os.read(pipe, 1 << 16)
            if not more:
                raise EOFError
            self._unread += more
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    @staticmethod
    def _wait(pipe: int, event: int, deadline: float) -> None:
        """Wait until ``pipe`` can be read or written. Raises TimeoutError at ``deadline``."""
        seconds = deadline - time.monotonic()
        poll = select.poll()
        poll.register(pipe, event)
        if seconds <= 0 or not poll.poll(seconds * 1000):
            raise TimeoutError
