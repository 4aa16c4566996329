"""The processes that share a run, one a host: how they find each other, and what of the work is whose.

Rows are independent, so hosts have nothing to say to each other while they decode: each takes its share of the samples
and decodes it on its own devices, refilling its own rows, and no collective leaves a host. Only where a model is too
large for one host's devices do several hold its weights and buffer together, a replica of it: they run the same
programs for the same requests in step, and the first of them writes. `jax.distributed` says who is there, and ends the
others when one is lost.
"""

import atexit
import contextlib
import dataclasses
import os
import pathlib
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from typing import TypeVar

from jkv.errors import UserError
from jkv.terminal import termination

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
# A host that gives no sign of life for so long is lost; and how long hosts are waited for at the end.
HEARTBEAT_S, PARTING_S = 60, 1800
_METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/"
_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Hosts:
    """This process's place among those that share a run.

    together: so many hosts hold each replica of the model, neighbours by index.
    """

    index: int = 0
    count: int = 1
    together: int = 1

    @property
    def first(self) -> bool:
        """Whether it is the one that writes results."""
        return self.index == 0

    @property
    def replicas(self) -> int:
        """How many there are of the model."""
        return self.count // self.together

    @property
    def replica(self) -> int:
        """Which of them this host has a part in, from 0."""
        return self.index // self.together

    @property
    def leader(self) -> int:
        """The host that writes what this one's replica decodes."""
        return self.replica * self.together

    def share(self, work: Sequence[_T]) -> list[_T]:
        """This replica's part of the work: every so many-th, so that all get of easy and hard problems alike."""
        return list(work[self.replica :: self.replicas])

    def __str__(self) -> str:
        return f"host {self.index} of {self.count} (from 0)"


def here() -> Hosts:
    """Where this process is. Starts JAX's backends, so ``join`` comes before."""
    import jax

    return Hosts(jax.process_index(), jax.process_count())


def join() -> Hosts:
    """Find the other processes, if there are any. To be called before JAX does anything.

    On a Cloud TPU slice of several hosts (also by GKE) nothing need be said. Elsewhere each process's environment has
    JAX_COORDINATOR_ADDRESS (HOST:PORT of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID; under Slurm and Open MPI the
    address is enough. Raises UserError if that is wrong, or the others don't come.
    """
    address = os.environ.get(ADDRESS)
    if not address and not _tpu_workers() > 1:
        return Hosts()
    import jax

    if leave_at_once not in termination.on_failure:
        termination.on_failure.append(leave_at_once)
    count, index = (_number(name) for name in (COUNT, INDEX))
    # JAX would take SIGTERM for itself (`jkv.terminal.termination` has it).
    if "jax_enable_preemption_service" in jax.config.values:
        jax.config.update("jax_enable_preemption_service", False)
    told = address and count is not None and index is not None
    try:
        jax.distributed.initialize(
            address or None, count, index, cluster_detection_method="deactivate" if told else None,
            heartbeat_timeout_seconds=HEARTBEAT_S, shutdown_timeout_seconds=PARTING_S,
        )  # fmt: skip
        hosts = here()
    except (ValueError, TypeError, RuntimeError) as error:
        what = f"the hosts did not find each other ({next(iter(str(error).splitlines()), '')})"
        mend = f"start the same command on every host, with {ADDRESS}, {COUNT} and {INDEX} in the environment"
        raise UserError(what, where=address or "jax.distributed", mend=mend) from None
    termination.renew()
    if hosts.count > 1:
        _leave_last_words(hosts)
    return hosts


def rows_per_replica(batch_size: int, hosts: Hosts) -> int:
    """A replica's rows of the batch. Raises UserError if they don't divide."""
    if batch_size % hosts.replicas:
        who = f"{hosts.replicas} hosts" if hosts.together == 1 else f"{hosts.replicas} groups of {hosts.together} hosts"
        what = f"{who} can't share {batch_size} rows evenly"
        raise UserError(what, where="--batch-size", mend=f"give a multiple of {hosts.replicas}")
    return batch_size // hosts.replicas


def need_out(out: str | None) -> pathlib.Path:
    """``--out``, where several hosts write. Raises UserError without."""
    if out is None:
        raise UserError("is missing", where="--out", mend="give a directory that all hosts share")
    return pathlib.Path(out)


def refuse(what: str) -> None:
    """For commands that are for one host. Raises UserError if several are asked for."""
    if os.environ.get(ADDRESS) or _tpu_workers() > 1:
        raise UserError(f"{what} runs on one host, here are several", mend="start it on a machine of its own")


def leave_at_once(error: BaseException) -> None:
    """Of several processes, one that failed doesn't wait for the others, as Python's end would; they end by themselves,
    as it gives no sign of life. Alone it goes on."""
    if "jax" not in sys.modules:
        return
    import jax

    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return
    if not isinstance(error, SystemExit):
        traceback.print_exception(error)
    code = error.code if isinstance(error, SystemExit) else 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if here().first:
        time.sleep(2)  # where all fail alike, the others have the time to say so: JAX aborts them once this one is gone
    if not isinstance(error, jax.errors.JaxRuntimeError):  # else it may well be that another host was lost
        for call in termination.before_leaving[:1]:  # no last words: the error is said
            call()
    os._exit(code if isinstance(code, int) else 1)


def _number(name: str) -> int | None:
    text = os.environ.get(name)
    if not text:
        return None
    if not text.isdecimal():
        raise UserError(f"{text!r} is no number", where=name, mend="give the same count on all hosts, and ids from 0")
    return int(text)


def _tpu_workers() -> int:
    """Hosts of the Cloud TPU that this machine is part of; 1 if it is none. Asks the metadata server where a TPU is,
    and only there."""
    names = os.environ.get("TPU_PROCESS_ADDRESSES") or os.environ.get("TPU_WORKER_HOSTNAMES")
    slices = os.environ.get("MEGASCALE_NUM_SLICES")
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if not _chips() or (platforms and "tpu" not in platforms):
        return 1
    if names is None and "TPU_SKIP_MDS_QUERY" not in os.environ:
        names = _metadata("worker-network-endpoints")
        line = next((line for line in _metadata("tpu-env").splitlines() if line.startswith("MEGASCALE_NUM_SLICES")), "")
        slices = slices or "".join(filter(str.isdecimal, line))
    return len((names or "localhost").split(",")) * int(slices or 1)


def _chips() -> bool:
    """Whether this machine has TPUs, or what looks like them."""
    return any([*pathlib.Path("/dev").glob("accel[0-9]*"), *pathlib.Path("/dev/vfio").glob("[0-9]*")])


def _metadata(name: str) -> str:
    """An attribute of this Google Cloud machine; empty if it has none, or is elsewhere."""
    import urllib.request

    request = urllib.request.Request(_METADATA + name, headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.urlopen(request, timeout=5) as reply:
            return reply.read().decode()
    except (OSError, UnicodeDecodeError):
        return ""


def _leave_last_words(hosts: Hosts) -> None:
    """When a host is lost JAX aborts the others, with a stack trace that few can read. A small process that sees this
    one end says it in a line."""
    line = f"{hosts} ended, most likely as another host was lost. Finished samples are kept: run the same command on "
    wait = "import sys; line = sys.argv[1]; sys.stdin.read() or print(line, file=sys.stderr, flush=True)"
    command = [sys.executable, "-S", "-E", "-c", wait, line + "all hosts to continue"]
    # A session of its own: Ctrl-C is for this process. Its input stays empty where this process is ended from outside.
    waiting = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)

    def needless() -> None:
        with contextlib.suppress(OSError, ValueError, subprocess.TimeoutExpired):
            waiting.communicate(b"all is well", timeout=1)

    atexit.register(needless)
    termination.before_leaving.append(needless)
    if hosts.first:
        # Where all are terminated, the others have the time to leave in order: JAX aborts them once this one is gone.
        termination.before_leaving.append(termination.use_all_the_time)
