"""Before several hosts work on a run: do they write to the same place, were they asked for the same, what is done
already? And after it: host 0 has written the results, and all may go."""

import contextlib
import hashlib
import pathlib
import secrets
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jkv.distributed.hosts import Hosts
from jkv.errors import UserError
from jkv.run.host_parts import Finished, Key, fold

# Seconds until a file that one host has written is seen by the others: a network file system remembers for a minute
# what wasn't there.
VISIBLE_S = 70.0
POLL_S = 1.0
_NOTE = ".hosts"


class Meeting:
    """What the hosts of a run agree on before it.

    out: where they all write.  runs: the directories of the runs to come.  config: a dataclass, what all were started
    with.  finished: of each run the samples that earlier sessions finished, the same on all hosts.  notice: what host 0
    repaired.
    Raises UserError, on all hosts, if they don't see the same files or were started differently.
    """

    def __init__(self, hosts: Hosts, out: pathlib.Path, runs: Sequence[pathlib.Path], config: Any):
        self.hosts, self.note, self.notice = hosts, out / _NOTE, ""
        digest = int.from_bytes(hashlib.sha256(_words(config).encode()).digest()[:4])
        number = secrets.randbits(31)
        if hosts.first:
            out.mkdir(parents=True, exist_ok=True)
            self.notice = "\n".join(filter(None, map(fold, runs)))
            self.note.write_text(f"{number}\n")
        with _others_leaving():
            told = multihost_utils.broadcast_one_to_all(np.array([number, digest], np.uint32))
            self.word = str(int(told[0]))
            saw, same = self._wait(self.word, VISIBLE_S), int(told[1]) == digest
            self.finished: dict[pathlib.Path, set[Key]] = {run: Finished(run).refresh() for run in runs}
            counts = [len(keys) for keys in self.finished.values()]
            answers = multihost_utils.process_allgather(np.array([saw, same, *counts], np.int32))
        self._compare(np.atleast_2d(np.asarray(answers)), out)

    def _compare(self, answers: np.ndarray, out: pathlib.Path) -> None:
        hosts = lambda wrong: f"host {int(np.argmax(wrong))}"
        if (blind := answers[:, 0] == 0).any():
            what, mend = (
                f"{hosts(blind)} does not see there what host 0 writes",
                "give a directory that all hosts share",
            )
            raise UserError(what, where=str(out), mend=mend)
        if (other := answers[:, 1] == 0).any():
            what = f"{hosts(other)} was started with other flags than host 0"
            raise UserError(what, mend="start the same command on every host")
        if (stale := (answers[:, 2:] != answers[0, 2:]).any(axis=1)).any():
            what = f"{hosts(stale)} does not see all samples that are finished there"
            raise UserError(what, where=str(out), mend="run the same command again")

    def end(self) -> None:
        """On host 0: all is written. On the others: wait for that."""
        if self.hosts.first:
            self.note.write_text(f"{self.word} done\n")
        else:
            self._wait(f"{self.word} done", None)
        jax.distributed.shutdown()  # a barrier
        if self.hosts.first:
            with contextlib.suppress(OSError):
                self.note.unlink()

    def _wait(self, word: str, seconds: float | None) -> bool:
        """Until the note says ``word``; whether it does."""
        until = None if seconds is None else time.monotonic() + seconds
        while True:
            with contextlib.suppress(OSError):
                if self.note.read_text() == word + "\n":
                    return True
            if until is not None and time.monotonic() > until:
                return False
            time.sleep(POLL_S if seconds is None else 0.1)


@contextlib.contextmanager
def _others_leaving():
    """A host that fails before all have met ends the meeting."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        reason = next(iter(str(error).splitlines()), "")[:200]
        raise UserError(f"another host left before the start ({reason})", mend="see what it says") from None


def _words(config: Any) -> str:
    """A config as text, without what may differ between hosts."""
    return repr({name: value for name, value in vars(config).items() if name != "quiet"})
