"""What several hosts check together before a run: that they write to the same place, were started with the same
configuration, and see the same finished samples. After the run they wait until host 0 has written the results."""

import contextlib
import hashlib
import pathlib
import secrets
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jkv.distributed.hosts import Hosts
from jkv.errors import UserError
from jkv.run.host_parts import Finished, Key, fold

# Seconds until a file that one host has written is seen by the others. Linux's NFS client remembers that a file wasn't
# there until the directory's cached attributes expire, after at most 60 s by default (lookupcache, acdirmax in nfs(5)).
VISIBLE_S = 70.0
# Seconds between two looks at what another host is to write.
POLL_S = 1.0
_NOTE = ".hosts"


class Meeting:
    """The hosts of a run or sweep, once they have agreed.

    Attributes:
        hosts: this host's place among them.
        note: the file in ``out`` by which the hosts recognise that they share it.
        finished: for each run's directory the samples that earlier sessions finished; the same on all hosts.
        notice: what host 0 repaired, a line each; empty on the others.
    """

    def __init__(self, hosts: Hosts, out: pathlib.Path, runs: Sequence[pathlib.Path], config: Any):
        """Meet. Every host calls this, and all leave it together.

        Args:
            hosts: this host's place among them.
            out: the directory where they all write.
            runs: the directories of the runs to come, ``out`` itself or below it.
            config: a dataclass that all were started with; its field ``quiet`` may differ.

        Raises:
            UserError: on all hosts, if they don't see the same files or were started differently; on host 0 alone,
                whose end ends the others, if parts that earlier hosts left can't be folded.
        """
        self.hosts, self.note, self.notice = hosts, out / _NOTE, ""
        digest = int.from_bytes(hashlib.sha256(_config_text(config).encode()).digest()[:4])
        number = secrets.randbits(31)  # of this meeting, so that an older note is not taken for its own
        if hosts.first:
            out.mkdir(parents=True, exist_ok=True)
            self.notice = "\n".join(filter(None, map(fold, runs)))
            self.note.write_text(f"{number}\n")
        with _lost_host_as_user_error():
            of_host_0 = multihost_utils.broadcast_one_to_all(np.array([number, digest], np.uint32))
            self._number = str(int(of_host_0[0]))
            sees_note, same_config = self._wait(self._number, VISIBLE_S), int(of_host_0[1]) == digest
            self.finished: dict[pathlib.Path, set[Key]] = {run: Finished(run).refresh() for run in runs}
            counts = [len(keys) for keys in self.finished.values()]
            answers = multihost_utils.process_allgather(np.array([sees_note, same_config, *counts], np.int32))
        self._compare(np.atleast_2d(np.asarray(answers)), out)

    def _compare(self, answers: np.ndarray, out: pathlib.Path) -> None:
        """Raise UserError unless all hosts gave the same answers.

        Args:
            answers: [host, answer]: does it see the note, has it the same config, and each run's finished samples.
            out: for the message.
        """
        first_host = lambda wrong: f"host {int(np.argmax(wrong))}"
        if (blind := answers[:, 0] == 0).any():
            what, mend = (
                f"{first_host(blind)} does not see there what host 0 writes",
                "give a directory that all hosts share",
            )
            raise UserError(what, where=str(out), mend=mend)
        if (other := answers[:, 1] == 0).any():
            what = f"{first_host(other)} was started with other flags than host 0"
            raise UserError(what, mend="start the same command on every host")
        if (stale := (answers[:, 2:] != answers[0, 2:]).any(axis=1)).any():
            what = f"{first_host(stale)} does not see all samples that are finished there"
            raise UserError(what, where=str(out), mend="run the same command again")

    def end(self) -> None:
        """On host 0: tell the others that all results are written. On the others: wait for that."""
        if self.hosts.first:
            self.note.write_text(f"{self._number} done\n")
        else:
            self._wait(f"{self._number} done", None)
        jax.distributed.shutdown()  # returns when all hosts have called it
        if self.hosts.first:
            with contextlib.suppress(OSError):
                self.note.unlink()

    def _wait(self, text: str, seconds: float | None) -> bool:
        """Wait until the note reads ``text``, for so many seconds (None: without end). Returns whether it does."""
        until = None if seconds is None else time.monotonic() + seconds
        while True:
            with contextlib.suppress(OSError):
                if self.note.read_text() == text + "\n":
                    return True
            if until is not None and time.monotonic() > until:
                return False
            time.sleep(POLL_S if seconds is None else 0.1)


@contextlib.contextmanager
def _lost_host_as_user_error() -> Iterator[None]:
    """A host that fails before all have met makes JAX's collectives fail on the others."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        reason = next(iter(str(error).splitlines()), "")[:200]
        raise UserError(f"another host left before the start ({reason})", mend="see what it says") from None


def _config_text(config: Any) -> str:
    """A config as text, without the field that may differ between hosts."""
    return repr({name: value for name, value in vars(config).items() if name != "quiet"})
