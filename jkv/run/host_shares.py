"""A run that several hosts share: each (or each group that holds a replica of the model) decodes its share into a
directory of its own; host 0 sums up.

Nobody waits while there is work: a host that is through with its share of a run begins with the next run of the sweep,
and host 0 sums a run up when the last sample of it is there.
"""

import collections
import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from jkv.distributed.hosts import Hosts
from jkv.engine.events import Request
from jkv.errors import UserError
from jkv.run.directory import BeingWritten, RunDirectory, read_config, refuse_other_config
from jkv.run.host_meeting import POLL_S, Meeting
from jkv.run.host_parts import Finished, Key, fold, part
from jkv.terminal.screen import Screen

# Seconds: after so long a wait for other hosts is said; a host may take so long to close what it has written.
SAY_AFTER_S, CLOSING_S = 10.0, 60.0


@dataclasses.dataclass
class Ending:
    """The end of a run whose part on this host is decoded.

    directory: the run's own; None on the hosts that don't sum up.  wanted: the samples it is made of.  others: those
    that are finished in parts.  sum_up: writes and returns the summary.
    """

    directory: RunDirectory | None
    wanted: set[Key]
    others: Finished
    sum_up: Callable[[RunDirectory], dict[str, Any]]
    quiet: bool = False

    @property
    def ready(self) -> bool:
        """Whether every host's samples are there."""
        return not self._missing()

    def summary(self) -> dict[str, Any] | None:
        """The summary, when every host's samples are there; None on the hosts that don't sum up."""
        if self.directory is None:
            return None
        screen, started = Screen(stderr=True, quiet=self.quiet, highlight=False), time.monotonic()
        said = False
        while missing := self._missing():
            if not said and time.monotonic() - started > SAY_AFTER_S:
                screen.print(f"waiting for {len(missing)} samples of the other hosts", soft_wrap=True)
                said = True
            time.sleep(POLL_S)
        try:
            if notice := self._fold(self.directory):
                screen.print(notice, soft_wrap=True)
            return self.sum_up(self.directory)
        finally:
            self.directory.close()

    def _fold(self, directory: RunDirectory) -> str:
        """``fold``; a host that has written its last sample has a moment to close its files."""
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
        return self.wanted - self.directory.finished - self.others.refresh()


@dataclasses.dataclass(frozen=True)
class Share:
    """This host's part of a run, yet to be decoded, into ``directory``; None if there is nothing left to do, or another
    host of its replica writes.

    total: samples of the part, or of the run where one host does all of it.  notice: what was repaired.
    """

    requests: list[Request]
    directory: RunDirectory | None
    ending: Ending
    total: int
    notice: str = ""

    @property
    def done(self) -> int:
        """Finished samples of ``total``."""
        return 0 if self.directory is None else len(self.directory.samples)

    def decoded(self) -> Ending:
        """All requests are: what is left is the end of the run."""
        if self.directory is not None and self.directory is not self.ending.directory:
            self.directory.close()
        return self.ending

    def close(self) -> None:
        """Close the files of a share that was broken off."""
        for directory in (self.directory, self.ending.directory):
            if directory is not None:
                directory.close()


def all_of(
    path: pathlib.Path,
    identity: dict[str, Any],
    requests: Sequence[Request],
    sum_up: Callable[[RunDirectory], dict[str, Any]],
    *,
    trace: bool,
) -> Share:
    """What a host alone has to do of a run in ``path``. Raises UserError as RunDirectory does."""
    repaired = fold(path)  # what several hosts have left there
    run = RunDirectory(path, identity, trace=trace)
    finished, wanted = run.finished, {(r.id, r.sample) for r in requests}
    try:
        _refuse_strangers(path, finished, wanted)
    except UserError:
        run.close()
        raise
    todo = [r for r in requests if (r.id, r.sample) not in finished]
    return Share(todo, run, Ending(run, wanted, Finished(), sum_up), len(requests), _lines(repaired, run.notice))


def share_of(
    meeting: Meeting,
    hosts: Hosts,
    path: pathlib.Path,
    identity: dict[str, Any],
    requests: Sequence[Request],
    sum_up: Callable[[RunDirectory], dict[str, Any]],
    *,
    trace: bool,
    quiet: bool,
) -> Share:
    """What this host has to do of a run in ``path``. hosts: those that meet, and how they hold the run's model.

    Raises UserError as RunDirectory does, on all hosts alike.
    """
    finished = meeting.finished[path]
    wanted = {(r.id, r.sample) for r in requests}
    if finished:
        refuse_other_config(path, read_config(path), json.loads(json.dumps(identity)))
        _refuse_strangers(path, finished, wanted)
    todo = hosts.share([r for r in requests if (r.id, r.sample) not in finished])
    run = RunDirectory(path, identity, trace=trace) if hosts.first else None
    writes = bool(todo) and hosts.index == hosts.leader
    mine = RunDirectory(part(path, hosts.index), identity, trace=trace, sync=True) if writes else None
    others = Finished(*(part(path, host) for host in range(hosts.count)))
    ending = Ending(run, wanted, others, sum_up, quiet)
    return Share(todo, mine, ending, len(todo), _lines(*(d.notice for d in (run, mine) if d is not None)))


def _refuse_strangers(path: pathlib.Path, finished: set[Key], wanted: set[Key]) -> None:
    if strangers := finished - wanted:
        mend = "delete its line, or give a new --out"
        raise UserError(f"has a sample of {min(strangers)[0]!r}, which the task has not", where=str(path), mend=mend)


def _lines(*notices: str) -> str:
    return "\n".join(filter(None, notices))


class Endings:
    """Runs of a sweep that are decoded here, in their order, until they are summed up."""

    def __init__(self, settle: Callable[[Any, dict[str, Any]], None]):
        self._settle = settle
        self._waiting: collections.deque[tuple[Any, Ending]] = collections.deque()

    def add(self, what: Any, ending: Ending) -> None:
        """Another run, ``what`` to the caller."""
        self._waiting.append((what, ending))

    def settle(self, *, wait: bool = False) -> None:
        """Hand those that are ready, or after a wait all, to the caller with their summaries."""
        while self._waiting and (wait or self._waiting[0][1].ready):
            what, ending = self._waiting.popleft()
            if (summary := ending.summary()) is not None:
                self._settle(what, summary)
