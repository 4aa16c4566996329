"""Runs pytest many times without importing its slow dependencies many times: each time in a fork of one process.

Started by `tests.breaks.runner` in the copied repository, as a script. Each line of its input is a job, JSON with the
``arguments`` of pytest, the file that its ``output`` goes to, and the ``seconds`` it may take; each line of its output
is the exit code, -1 where time ran out. Nothing of the repository is imported before a fork.
"""

import importlib
import json
import os
import signal
import sys
import time
import warnings

# What tests import of others, the slow ones. Not pytest's plugins, and nothing that starts threads.
SLOW = (
    "jax", "flax.nnx", "optax", "scipy.stats", "safetensors", "pydantic", "rich", "tokenizers", "matplotlib.figure",
    "torch", "transformers",
)  # fmt: skip
TIMED_OUT = -1


def main() -> None:
    """Serve jobs until the end of the input."""
    warnings.simplefilter("ignore")  # JAX warns of forks; here no backend was started yet
    for name in SLOW:
        try:
            importlib.import_module(name)
        except ImportError:  # those tests are skipped, or fail by themselves
            continue
    replies = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            _run(job)
        replies.write(f"{_wait(child, job['seconds'])}\n")
        replies.flush()


def _run(job: dict) -> None:
    """In the child: pytest, and nothing after it."""
    code = 1  # as Python's where an exception ends it: a failed test may leave files open, which pytest reports so
    try:
        os.setsid()
        output = os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        warnings.resetwarnings()
        _do_not_shrink()
        import pytest

        code = int(pytest.main(job["arguments"]))
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _do_not_shrink() -> None:
    """Hypothesis stops at the first example that fails: looking for a smaller one takes minutes."""
    try:
        import hypothesis
    except ImportError:
        return
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile("breaks", phases=phases, database=None)
    hypothesis.settings.load_profile("breaks")


def _wait(child: int, seconds: float) -> int:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return TIMED_OUT


if __name__ == "__main__":
    main()
