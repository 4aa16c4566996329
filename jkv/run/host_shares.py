"""A host's share of a run. Of several hosts each (or each group of hosts that together hold the model) decodes its
share into a part of its own, and host 0 closes the run.

No host waits while there is work: one that is through with its share begins with the next run of the sweep, and host 0
closes a run when the last sample of it is there.
"""

import collections
import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from jkv.distributed.hosts import Hosts
from jkv.engine.events import Request
from jkv.errors import UserError
from jkv.run.directory import BeingWritten, RunDirectory, read_config, refuse_other_config
from jkv.run.host_meeting import POLL_S, Meeting
from jkv.run.host_parts import Finished, Key, fold, part
from jkv.run.summary import Summary
from jkv.terminal.screen import Screen

# Seconds that host 0 waits for the others' samples before it prints that it waits.
QUIET_WAIT_S = 10.0
# Seconds that a host may take to close its files after its last sample.
CLOSING_S = 60.0
Summarise = Callable[[RunDirectory], Summary]
"""Writes the summary of a run whose samples are all in its directory, and returns it."""
_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class UnclosedRun:
    """A run of which this host has decoded its share. What is left: wait for the other hosts' samples, fold their parts
    into the run's directory, and sum up.

    Attributes:
        directory: the run's own; None on hosts other than the first, which have nothing left to do.
        wanted: all samples of the run.
        in_parts: the finished samples that are still in the hosts' parts.
        summarise: called with ``directory`` when all samples are in it.
        quiet: print nothing.
    """

    directory: RunDirectory | None
    wanted: set[Key]
    in_parts: Finished
    summarise: Summarise
    quiet: bool

    @property
    def ready(self) -> bool:
        """Whether `close` would return without waiting."""
        return not self._missing()

    def close(self) -> Summary | None:
        """Wait until every host's samples are there, sum up, and close the directory.

        Returns:
            The summary; None on hosts other than the first.

        Raises:
            UserError: a host's part can't be folded, or a file can't be written.
        """
        if self.directory is None:
            return None
        screen, started = Screen(stderr=True, quiet=self.quiet, highlight=False), time.monotonic()
        printed = False
        while missing := self._missing():
            if not printed and time.monotonic() - started > QUIET_WAIT_S:
                screen.print(f"waiting for {len(missing)} samples of the other hosts", soft_wrap=True)
                printed = True
            time.sleep(POLL_S)
        try:
            if notice := self._fold(self.directory):
                screen.print(notice, soft_wrap=True)
            return self.summarise(self.directory)
        finally:
            self.directory.close()

    def _fold(self, directory: RunDirectory) -> str:
        """`fold`, with some patience for a host that has written its last sample and not yet closed its files."""
        until = time.monotonic() + CLOSING_S
        while True:
            try:
                return fold(directory.path, directory)
            except BeingWritten:
                if time.monotonic() > until:
                    raise
                time.sleep(POLL_S)

    def _missing(self) -> set[Key]:
        if self.directory is None:
            return set()
        return self.wanted - self.directory.finished - self.in_parts.refresh()


@dataclasses.dataclass(frozen=True)
class Share:
    """This host's share of a run, to be decoded.

    Attributes:
        requests: its samples that are not finished.
        directory: where this host writes them. None if there is nothing to write: all is finished, or another host of
            the same replica of the model writes.
        run: the run's own directory, open on the host that closes the run; None on the others.
        wanted: all samples of the run.
        in_parts: the finished samples in the hosts' parts.
        total: samples to count progress by: of the whole run on a single host, else those in ``requests``.
        notice: what was repaired on opening, a line each; empty if nothing was.
        quiet: print nothing.
    """

    requests: list[Request]
    directory: RunDirectory | None
    run: RunDirectory | None
    wanted: set[Key]
    in_parts: Finished
    total: int
    notice: str
    quiet: bool

    @property
    def done(self) -> int:
        """Finished samples of ``total``."""
        return 0 if self.directory is None else len(self.directory.samples)

    def decoded(self, summarise: Summarise) -> UnclosedRun:
        """Close what only this host writes, after all requests are decoded.

        Args:
            summarise: called when the run is closed.

        Returns:
            What is left to do of the run.
        """
        if self.directory is not None and self.directory is not self.run:
            self.directory.close()
        return UnclosedRun(self.run, self.wanted, self.in_parts, summarise, self.quiet)

    def close_files(self) -> None:
        """Close the files of a share whose decoding was broken off."""
        for directory in (self.directory, self.run):
            if directory is not None:
                directory.close()


def open_share(
    path: pathlib.Path,
    identity: dict[str, object],
    requests: Sequence[Request],
    hosts: Hosts,
    meeting: Meeting | None,
    *,
    trace: bool,
    quiet: bool,
) -> Share:
    """This host's share of a run, with its files open.

    Args:
        path: the run's directory.
        identity: what must be the same to continue the run (`jkv.run.identity`).
        requests: all samples of the run, the finished ones included.
        hosts: those that share the run, and how many of them hold the model together.
        meeting: where they have met; None on a single host.
        trace: whether evictions are written, too.
        quiet: print nothing while waiting for other hosts.

    Raises:
        UserError: the directory holds another run's samples or damaged lines, or can't be written; on several hosts all
            of them raise it for samples that don't belong there.
    """
    wanted = {(r.id, r.sample) for r in requests}
    if meeting is None:
        return _whole_run(path, identity, requests, wanted, trace=trace, quiet=quiet)
    finished = meeting.finished[path]
    if finished:
        refuse_other_config(path, read_config(path), json.loads(json.dumps(identity)))
        _refuse_foreign_samples(path, finished, wanted)
    todo = hosts.share([r for r in requests if (r.id, r.sample) not in finished])
    run = RunDirectory(path, identity, trace=trace) if hosts.first else None
    writes = bool(todo) and hosts.index == hosts.leader
    own = RunDirectory(part(path, hosts.index), identity, trace=trace, sync=True) if writes else None
    in_parts = Finished(*(part(path, host) for host in range(hosts.count)))
    notice = _lines(*(d.notice for d in (run, own) if d is not None))
    return Share(todo, own, run, wanted, in_parts, len(todo), notice, quiet)


def _whole_run(
    path: pathlib.Path,
    identity: dict[str, object],
    requests: Sequence[Request],
    wanted: set[Key],
    *,
    trace: bool,
    quiet: bool,
) -> Share:
    """The share of a single host."""
    notice = fold(path)  # parts that several hosts have left there
    run = RunDirectory(path, identity, trace=trace)
    finished = run.finished
    try:
        _refuse_foreign_samples(path, finished, wanted)
    except UserError:
        run.close()
        raise
    todo = [r for r in requests if (r.id, r.sample) not in finished]
    return Share(todo, run, run, wanted, Finished(), len(requests), _lines(notice, run.notice), quiet)


def _refuse_foreign_samples(path: pathlib.Path, finished: set[Key], wanted: set[Key]) -> None:
    if foreign := finished - wanted:
        mend = "delete its line, or give a new --out"
        raise UserError(f"has a sample of {min(foreign)[0]!r}, which the task has not", where=str(path), mend=mend)


def _lines(*notices: str) -> str:
    return "\n".join(filter(None, notices))


class UnclosedRuns(Generic[_T]):
    """Runs of a sweep whose share is decoded here, in their order, until each is closed."""

    def __init__(self, closed: Callable[[_T, Summary], None]):
        """
        Args:
            closed: called with each run's label and summary when it is closed; on the first host only.
        """
        self._closed = closed
        self._waiting: collections.deque[tuple[_T, UnclosedRun]] = collections.deque()

    def add(self, label: _T, run: UnclosedRun) -> None:
        """Take a run.

        Args:
            label: what the caller calls it.
            run: to be closed after those that came before.
        """
        self._waiting.append((label, run))

    def close(self, *, wait: bool = False) -> None:
        """Close runs from the front of the queue.

        Args:
            wait: close all of them, waiting for other hosts' samples; otherwise stop at the first that isn't ready.

        Raises:
            UserError: as `UnclosedRun.close` does.
        """
        while self._waiting and (wait or self._waiting[0][1].ready):
            label, run = self._waiting.popleft()
            if (summary := run.close()) is not None:
                self._closed(label, summary)
