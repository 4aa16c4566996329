"""The same command on several hosts: processes on this machine, of simulated devices, that find each other."""

import pathlib
import socket
import subprocess
import sys
from collections.abc import Sequence

from tests.support.compilation import quick_environment

DEVICES = 8  # of all processes together


def launch(words: Sequence[object], processes: int, cache: pathlib.Path) -> list[subprocess.Popen]:
    """``python -m WORDS``, once a process. cache: of compiled programs."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", *map(str, words)]
    environment = {
        **quick_environment(DEVICES // processes), "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }  # fmt: skip
    if processes > 1:
        environment |= {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": str(processes)}
    return [
        subprocess.Popen(
            command, env=environment | ({"JAX_PROCESS_ID": str(i)} if processes > 1 else {}), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for i in range(processes)
    ]  # fmt: skip


def finish(started: Sequence[subprocess.Popen]) -> None:
    """Wait for all; each ends well."""
    for process in started:
        _, err = process.communicate(timeout=900)
        assert process.returncode == 0, err[-3000:]
