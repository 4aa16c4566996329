"""SIGTERM, which a process gets when its machine is preempted: the write that is under way is finished, one line says
how to continue, and the process is gone within five seconds, whatever it was doing.

Python calls a signal's handler between two bytecodes, and a single call of the device may last longer than five
seconds. There are therefore two of them. The handler raises `Terminated` in the main thread, which then ends by itself.
A second thread is woken at once by the byte that Python writes to a pipe for each signal, and ends the process if the
main thread is still there after ``GRACE_S``.
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
# Seconds that the main thread has to end by itself. The rest of the five is for the last line.
GRACE_S = 3.5


class Terminated(KeyboardInterrupt):
    """SIGTERM came. Like Ctrl-C's it is no subclass of Exception, so ``except Exception`` lets it pass."""


_writing, _leaving = threading.Lock(), threading.Lock()
# What `last_line` was given, innermost block last.
_last_lines: list[Callable[[], str]] = []
# When SIGTERM came, by time.monotonic().
_since = 0.0
# Whether the main thread is inside `whole_write`, and whether SIGTERM came meanwhile.
_busy = _owed = False
# Called by `leave` before the process ends.
before_leaving: list[Callable[[], None]] = []
# Called with the exception that ends a command before it is done, SystemExit included.
on_failure: list[Callable[[BaseException], None]] = []


@contextlib.contextmanager
def whole_write() -> Iterator[None]:
    """The block is a write that SIGTERM doesn't break off: `Terminated` is raised after it. Not to be nested."""
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


@contextlib.contextmanager
def last_line(text: Callable[[], str]) -> Iterator[None]:
    """The last line that the command prints if SIGTERM or Ctrl-C ends it during the block. The innermost block counts.

    Args:
        text: called then; says how far the work is and how to continue it.

    Raises:
        KeyboardInterrupt, Terminated: as in the block, with the text as argument.
    """
    _last_lines.append(text)
    try:
        yield
    except KeyboardInterrupt as error:
        if error.args:
            raise
        raise type(error)(text()) from None
    finally:
        _last_lines.remove(text)


@contextlib.contextmanager
def handling_sigterm() -> Iterator[None]:
    """While the block runs, SIGTERM ends the process as this module says. Outside the main thread, where Python allows
    no handlers, nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = signal.signal(signal.SIGTERM, _handle)
    woken_before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(read,), name="termination", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(woken_before)
        signal.signal(signal.SIGTERM, before)
        os.close(write)  # the thread reads the end of the file, and ends
        watcher.join()


def reinstall_handler() -> None:
    """Take SIGTERM back from a library that has installed a handler of its own below Python, as JAX does."""
    if signal.getsignal(signal.SIGTERM) is _handle:  # Python only knows of handlers that it has installed itself
        signal.signal(signal.SIGTERM, _handle)


def leave(error: Terminated | None = None) -> NoReturn:
    """Print the last line and end the process at once, without Python's own clean-up.

    Args:
        error: what the main thread was ended by; its arguments are the last line. None in the second thread, which asks
            for the line itself.
    """
    if not _leaving.acquire(blocking=False):  # another thread is ending the process
        time.sleep(60)
    with contextlib.suppress(OSError, ValueError):
        lines = [str(line) for line in getattr(error, "args", ())] or [text() for text in _last_lines[-1:]]
        print(" ".join(": ".join(["terminated", *lines]).split()), file=sys.stderr, flush=True)
        sys.stdout.flush()
    for call in before_leaving:
        call()
    os._exit(EXIT_CODE)


def wait_out_grace() -> None:
    """Wait until the five seconds after SIGTERM are nearly over."""
    time.sleep(max(0.0, _since + GRACE_S + 0.4 - time.monotonic()))


def _handle(*_: Any) -> None:
    global _owed
    _owed = _busy  # `whole_write` raises when it is done
    if not _busy:
        raise Terminated


def _watch(pipe: int) -> None:
    """The second thread: wait for SIGTERM's byte, then end the process unless the main thread does so in time.

    Args:
        pipe: descriptor that Python writes a signal's number to; closed when the command is done.
    """
    global _since
    with open(pipe, "rb", buffering=0) as signals:
        while (byte := signals.read(1)) != bytes([signal.SIGTERM]):
            if not byte:
                return
        _since = time.monotonic()
        deadline = _since + GRACE_S
        os.set_blocking(signals.fileno(), False)
        while time.monotonic() < deadline:
            if signals.read(1) == b"":  # the main thread has left `handling_sigterm`
                return
            time.sleep(0.02)
    # Wait for a write that is under way, but not for a disk that doesn't answer. A line torn by that is cut off when
    # the run continues.
    _writing.acquire(timeout=0.5)
    leave()
