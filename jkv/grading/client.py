"""The caller's side of the grader: it starts the worker, asks it, and replaces one that dies or stalls."""

import contextlib
import dataclasses
import json
import os
import select
import subprocess
import sys
import threading
import time

LIMIT_S = 10.0
MEMORY_BYTES = 2 << 30
# Importing sympy takes a second or two, on a loaded machine or a network file system far longer.
START_S = 120.0

# The worker sees what this process can import, wherever that was found; -P keeps the working directory out.
_COMMAND = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from jkv.grading.worker import main; main(sys.argv)"
)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """correct: None if the answer could not be graded; ``reason`` then says why: timeout, memory, died."""

    correct: bool | None
    reason: str = ""


class Grader:
    """Compares answers with references in one long-lived worker process. A context manager, safe to use from threads.

    limit: seconds an answer.  memory: bytes of address space the worker may take.
    The worker is started by the first answer, or ahead of it by ``start``; it ends with ``close``, with this process
    (it reads end of file), and at the latest a few seconds after the limit of what it is working on.
    """

    def __init__(self, *, limit: float = LIMIT_S, memory: int = MEMORY_BYTES):
        self.limit, self.memory = limit, memory
        self._worker: subprocess.Popen[bytes] | None = None
        self._ready, self._closed = False, False
        self._left = b""
        self._lock = threading.Lock()

    def __enter__(self) -> "Grader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Process id of the worker, None if there is none."""
        return None if self._worker is None else self._worker.pid

    def start(self) -> None:
        """Start the worker if there is none, without waiting for it to be ready."""
        if self._worker is not None or self._closed:
            return
        self._ready, self._left = False, b""
        # A session of its own: Ctrl-C at the terminal is for this process, which then ends the worker.
        self._worker = subprocess.Popen(
            [sys.executable, "-P", "-c", _COMMAND, json.dumps(sys.path), str(self.limit), str(self.memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "PYTHONHASHSEED": "0"},  # sympy's ways through an expression depend on it
        )
        assert self._worker.stdin is not None
        os.set_blocking(self._worker.stdin.fileno(), False)

    def grade(self, answer: str, reference: str) -> Verdict:
        """Whether ``answer`` is ``reference`` in another notation. Never raises for what the answer says."""
        with self._lock:
            try:
                self.start()
                if not self._ready:
                    self._answer_line(time.monotonic() + START_S)
                    self._ready = True
                # ASCII JSON carries every string that Python can hold, half surrogate pairs too.
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
        """End the worker at once, whatever it is doing. Answers that wait, or are asked for later, are ungraded."""
        self._closed = True
        worker = self._worker
        if worker is not None:
            worker.kill()  # before the lock: another thread may be waiting for its answer
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
            with contextlib.suppress(OSError):  # of a worker that died there may be something to flush
                pipe.close()

    def _ask(self, line: bytes) -> dict:
        deadline = time.monotonic() + self.limit
        assert self._worker is not None
        assert self._worker.stdin is not None
        pipe = self._worker.stdin.fileno()
        while line:
            self._wait(pipe, select.POLLOUT, deadline)
            line = line[os.write(pipe, line) :]
        return json.loads(self._answer_line(deadline))

    def _answer_line(self, deadline: float) -> bytes:
        assert self._worker is not None
        assert self._worker.stdout is not None
        pipe = self._worker.stdout.fileno()
        while b"\n" not in self._left:
            self._wait(pipe, select.POLLIN, deadline)
            more = os.read(pipe, 1 << 16)
            if not more:
                raise EOFError
            self._left += more
        line, _, self._left = self._left.partition(b"\n")
        return line

    @staticmethod
    def _wait(pipe: int, event: int, deadline: float) -> None:
        seconds = deadline - time.monotonic()
        poll = select.poll()
        poll.register(pipe, event)
        if seconds <= 0 or not poll.poll(seconds * 1000):
            raise TimeoutError
