"""The processes that share a run, one a host: how they find each other, and which part of the work each one does.

Rows are independent, so hosts don't communicate while they decode. Each takes its share of the samples and decodes it
on its own devices, refilling its own rows; no collective leaves a host. Only where a model is too large for one host's
devices do several hosts hold one replica of it (weights and buffer) together. These run the same programs for the same
requests in step, and the first of them writes. `jax.distributed` connects the processes, and ends the others when one
is lost.
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
# Seconds without a sign of life after which a host counts as lost; seconds that hosts wait for each other at the end.
HEARTBEAT_S, PARTING_S = 60, 1800
_METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/"
_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Hosts:
    """Which of the hosts that share a run this process is.

    Attributes:
        index: of this host, from 0.
        count: how many hosts share the run.
        together: how many hosts hold one replica of the model; they are neighbours by index.
    """

    index: int = 0
    count: int = 1
    together: int = 1

    @property
    def first(self) -> bool:
        """Whether this is host 0, which sums the run up and writes its results."""
        return self.index == 0

    @property
    def replicas(self) -> int:
        """How many replicas of the model there are. Each decodes samples of its own."""
        return self.count // self.together

    @property
    def replica(self) -> int:
        """The replica that this host holds, or holds a part of, from 0."""
        return self.index // self.together

    @property
    def leader(self) -> int:
        """Index of the host that writes what this host's replica decodes: the first of its group."""
        return self.replica * self.together

    def share(self, work: Sequence[_T]) -> list[_T]:
        """This replica's part of the work: every ``replicas``-th item, beginning with item number ``replica``.

        So easy and hard problems go to all replicas alike, even where the work is sorted by difficulty.
        """
        return list(work[self.replica :: self.replicas])

    def __str__(self) -> str:
        return f"host {self.index} of {self.count} (from 0)"


def here() -> Hosts:
    """Which host this is, by what JAX knows.

    It starts JAX's backends, so ``join`` has to be called before.

    Returns:
        The host, with ``together`` 1: only a mesh says more (``jkv.distributed.choose_mesh.spread_over``).
    """
    import jax

    return Hosts(jax.process_index(), jax.process_count())


def join() -> Hosts:
    """Find the other processes of this run, if there are any. Call it before JAX starts its backends.

    A Cloud TPU slice of several hosts (also on GKE) is found by itself. Elsewhere each process needs three variables in
    its environment: JAX_COORDINATOR_ADDRESS (HOST:PORT of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID; under Slurm
    and Open MPI the address is enough. If there are others, ``leave_at_once`` is called when the command fails from now
    on, and SIGTERM stays with `jkv.terminal.termination`.

    Returns:
        Which host this is; host 0 of 1 if it is alone.

    Raises:
        UserError: a variable that is not a number, or processes that did not find each other in time.
    """
    address = os.environ.get(ADDRESS)
    if not address and not _tpu_workers() > 1:
        return Hosts()
    import jax

    if leave_at_once not in termination.on_failure:
        termination.on_failure.append(leave_at_once)
    count, index = (_number(name) for name in (COUNT, INDEX))
    # JAX would install its own handler of SIGTERM, which belongs to `jkv.terminal.termination`.
    if "jax_enable_preemption_service" in jax.config.values:
        jax.config.update("jax_enable_preemption_service", False)
    explicit = address and count is not None and index is not None
    try:
        jax.distributed.initialize(
            address or None, count, index, cluster_detection_method="deactivate" if explicit else None,
            heartbeat_timeout_seconds=HEARTBEAT_S, shutdown_timeout_seconds=PARTING_S,
        )  # fmt: skip
        hosts = here()
    except (ValueError, TypeError, RuntimeError) as error:
        what = f"the hosts did not find each other ({next(iter(str(error).splitlines()), '')})"
        mend = f"start the same command on every host, with {ADDRESS}, {COUNT} and {INDEX} in the environment"
        raise UserError(what, where=address or "jax.distributed", mend=mend) from None
    termination.reinstall_handler()
    if hosts.count > 1:
        _explain_if_aborted(hosts)
    return hosts


def rows_per_replica(batch_size: int, hosts: Hosts) -> int:
    """How many rows of the batch each replica decodes.

    Args:
        batch_size: rows of all replicas together.
        hosts: those that share the run.

    Raises:
        UserError: the rows can't be shared evenly.
    """
    if batch_size % hosts.replicas:
        who = f"{hosts.replicas} hosts" if hosts.together == 1 else f"{hosts.replicas} groups of {hosts.together} hosts"
        what = f"{who} can't share {batch_size} rows evenly"
        raise UserError(what, where="--batch-size", mend=f"give a multiple of {hosts.replicas}")
    return batch_size // hosts.replicas


def need_out(out: str | None) -> pathlib.Path:
    """The directory of ``--out``, which a run of several hosts can't do without: they meet there and write to it.

    Args:
        out: of the config.

    Raises:
        UserError: it is None.
    """
    if out is None:
        raise UserError("is missing", where="--out", mend="give a directory that all hosts share")
    return pathlib.Path(out)


def refuse(what: str) -> None:
    """Refuse to run a command for one host where several were started.

    Args:
        what: the command's name, for the message.

    Raises:
        UserError: the environment names other processes, or this machine is one of several hosts of a TPU slice.
    """
    if os.environ.get(ADDRESS) or _tpu_workers() > 1:
        raise UserError(f"{what} runs on one host, but here are several", mend="start it on a machine of its own")


def leave_at_once(error: BaseException) -> None:
    """End this process now if it failed and others share its run; do nothing if it is alone.

    When Python exits in order, JAX waits for the other processes (up to ``PARTING_S``). One that failed skips this: the
    others are ended by JAX as soon as they miss it.

    Args:
        error: what ended the command; a SystemExit gives the exit code, anything else is printed and exits with 1.
    """
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
        # JAX aborts the others once host 0 is gone. Where all fail alike, this gives them time to print their errors.
        time.sleep(2)
    # A JaxRuntimeError may well mean that another host was lost, and then the line of ``_explain_if_aborted`` is
    # wanted. After any other error it is not, because the error itself was printed: the first call takes it back.
    if not isinstance(error, jax.errors.JaxRuntimeError):
        for call in termination.before_leaving[:1]:
            call()
    os._exit(code if isinstance(code, int) else 1)


def _number(name: str) -> int | None:
    """An environment variable as a number, None if it is not set. Raises UserError if it is something else."""
    text = os.environ.get(name)
    if not text:
        return None
    if not text.isdecimal():
        mend = "give the same count on all hosts, and ids from 0"
        raise UserError(f"{text!r} is not a number", where=name, mend=mend)
    return int(text)


def _tpu_workers() -> int:
    """How many hosts the Cloud TPU has that this machine is part of; 1 if it is part of none.

    Asks Google Cloud's metadata server, but only on a machine that has TPU chips.
    """
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
    """Whether this machine has device files like those of TPU chips."""
    return any([*pathlib.Path("/dev").glob("accel[0-9]*"), *pathlib.Path("/dev/vfio").glob("[0-9]*")])


def _metadata(name: str) -> str:
    """An attribute of this machine from Google Cloud's metadata server; '' if there is none or no such server."""
    import urllib.request

    request = urllib.request.Request(_METADATA + name, headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.urlopen(request, timeout=5) as reply:
            return reply.read().decode()
    except (OSError, UnicodeDecodeError):
        return ""


def _explain_if_aborted(hosts: Hosts) -> None:
    """Start a small process that prints one line if this process is aborted.

    When a host is lost, JAX aborts the others with a stack trace that few can read. The small process waits on its
    standard input: if that ends without a message, this process did not end in order, and the line says what happened
    and how to continue.
    """
    line = f"{hosts} ended, most likely as another host was lost. Finished samples are kept: run the same command on "
    wait = "import sys; line = sys.argv[1]; sys.stdin.read() or print(line, file=sys.stderr, flush=True)"
    command = [sys.executable, "-S", "-E", "-c", wait, line + "all hosts to continue"]
    # In a session of its own, so that Ctrl-C reaches this process only.
    waiting = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)

    def cancel() -> None:
        """End the small process without its line: this process ends in order."""
        with contextlib.suppress(OSError, ValueError, subprocess.TimeoutExpired):
            waiting.communicate(b"all is well", timeout=1)

    atexit.register(cancel)
    termination.before_leaving.append(cancel)
    if hosts.first:
        # JAX aborts the others once host 0 is gone. Where SIGTERM comes to all, host 0 leaves last.
        termination.before_leaving.append(termination.wait_out_grace)
