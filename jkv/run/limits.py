"""What this machine can't do, said in one line: too little memory for a run, or no kernel for its hardware."""

import contextlib
import os
from collections.abc import Iterator

import jax

from jkv.errors import UserError
from jkv.terminal.screen import human_bytes


def check_memory(kv_bytes: int) -> None:
    """Refuse a KV buffer that is larger than the machine's memory. A CPU would allocate it all the same, and the
    operating system would kill the process when it is written.

    Args:
        kv_bytes: the buffer's size. Only checked on a CPU: an accelerator refuses the allocation itself.

    Raises:
        UserError: it doesn't fit.
    """
    if jax.default_backend() == "cpu" and hasattr(os, "sysconf"):
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if kv_bytes > there:
            what = f"the KV buffer takes {human_bytes(kv_bytes)}, the machine has {human_bytes(there)}"
            raise UserError(what, mend="lower --budget, --batch-size or (policy full) --max-new-tokens")


@contextlib.contextmanager
def device_errors_as_user_errors() -> Iterator[None]:
    """Turn failures of the block that a user can mend into UserErrors: no kernel for this hardware, out of memory."""
    try:
        yield
    except NotImplementedError as error:
        raise UserError(str(error), where="--implementation", mend="auto takes what there is") from None
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            reason = next(iter(str(error).splitlines()), "")
            mend = "lower --batch-size or --budget; with --out, finished samples are kept"
            raise UserError(f"out of memory ({reason[:200]})", mend=mend) from None
        raise
