"""SIGTERM, as a preempted machine gets it: the write in hand is finished, one line says how to go on, and the process
is gone within five seconds, whatever it was doing.

Python runs a signal's handler between bytecodes, and one call of the device may last longer than five seconds. So the
handler, which raises ``Terminated`` and lets the command end in its own time, has a thread behind it: the signal's byte
in a pipe wakes it at once, and it leaves for the main thread if that is still there when ``GRACE_S`` are over.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

EXIT_CODE = 128 + signal.SIGTERM
# Seconds from the signal to the exit at most; what is left of the five is for the last line.
GRACE_S = 3.5
# Of these, seconds that grades of finished samples are waited for.
PATIENCE_S = 2.0


class Terminated(KeyboardInterrupt):
    """SIGTERM came. Like Ctrl-C it is no Exception: nothing on the way mistakes it for a failure."""


_writing, _leaving = threading.Lock(), threading.Lock()
_said: list[Callable[[], str]] = []
_since = 0.0
# Called by ``leave`` before the process ends.
before_leaving: list[Callable[[], None]] = []
# Called with what ends a command before it is done, an exit for a mistake of the user's included.
on_failure: list[Callable[[BaseException], None]] = []


@contextlib.contextmanager
def whole_write() -> Iterator[None]:
    """A write that SIGTERM doesn't break off. Not to be nested."""
    global _busy, _owed
    with _writing:
        _busy = True
        try:
            yield
        finally:
            _busy = False
    if _owed and threading.current_thread() is threading.main_thread():
        _owed = False
        raise Terminated


# Whether the main thread is writing, and whether SIGTERM came meanwhile.
_busy = _owed = False


@contextlib.contextmanager
def saying(what: Callable[[], str]) -> Iterator[None]:
    """While the block runs, ``what`` says how far the work is, and how to continue: the last line is its, after Ctrl-C,
    too."""
    _said.append(what)
    try:
        yield
    except KeyboardInterrupt as error:
        if error.args:
            raise
        raise type(error)(what()) from None
    finally:
        _said.remove(what)


@contextlib.contextmanager
def orderly() -> Iterator[None]:
    """While the block runs, SIGTERM ends the process as this module says. Only in the main thread; else as before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = signal.signal(signal.SIGTERM, _handle)
    woken_before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    watch = threading.Thread(target=_watch, args=(read,), name="termination", daemon=True)
    watch.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(woken_before)
        signal.signal(signal.SIGTERM, before)
        os.close(write)  # the thread reads the end of the file, and ends
        watch.join()


def renew() -> None:
    """Take SIGTERM back from a library that has put a handler of its own there."""
    if signal.getsignal(signal.SIGTERM) is _handle:  # what Python knows: other handlers leave no trace there
        signal.signal(signal.SIGTERM, _handle)


def leave(error: Terminated | None = None) -> NoReturn:
    """Say the last line, and leave the process without what else Python does at its end."""
    if not _leaving.acquire(blocking=False):  # another thread is at it
        time.sleep(60)
    with contextlib.suppress(OSError, ValueError):
        words = [str(word) for word in getattr(error, "args", ())] or [what() for what in _said[-1:]]
        print(" ".join(": ".join(["terminated", *words]).split()), file=sys.stderr, flush=True)
        sys.stdout.flush()
    for call in before_leaving:
        call()
    os._exit(EXIT_CODE)


def use_all_the_time() -> None:
    """Wait until the seconds after SIGTERM are nearly over."""
    time.sleep(max(0.0, _since + GRACE_S + 0.4 - time.monotonic()))


def _handle(*_: Any) -> None:
    global _owed
    _owed = _busy  # ``whole_write`` raises when it is done
    if not _busy:
        raise Terminated


def _watch(pipe: int) -> None:
    """Wait for SIGTERM's byte; then leave the process, unless it has gone by itself."""
    global _since
    with open(pipe, "rb", buffering=0) as signals:
        while (byte := signals.read(1)) != bytes([signal.SIGTERM]):
            if not byte:
                return
        _since = time.monotonic()
        deadline = _since + GRACE_S
        os.set_blocking(signals.fileno(), False)
        while time.monotonic() < deadline:
            if signals.read(1) == b"":  # the main thread is through in spite of it
                return
            time.sleep(0.02)
    # A disk that doesn't answer must not hold the process: a torn line is cut off when the run goes on.
    _writing.acquire(timeout=0.5)
    leave()
