"""Every test runs with strict dtype and rank promotion and with jaxtyping annotations checked at run time."""

import atexit
import contextlib
import os
import shutil
import tempfile

from tests.support.quick_flags import QUICK_FLAGS

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# The rest of quick compilation is in tests/support/compilation.py, which imports JAX: it may be imported only below.
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *QUICK_FLAGS]).strip()
# What one process of a session has compiled, the others find: workers, and the commands that tests start. The folder
# is made anew for each session, by the process that starts the workers, and goes when that process ends.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _compiled = tempfile.mkdtemp(prefix="jkv-tests-")
    atexit.register(shutil.rmtree, _compiled, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax
from jaxtyping import install_import_hook

# No test asserts a time: hypothesis's limit of 200 ms an example fails on a busy machine, and where lines are counted.
with contextlib.suppress(ModuleNotFoundError):  # the environment of tests/kvpress has no hypothesis
    from hypothesis import settings

    settings.register_profile("jkv", deadline=None)
    settings.load_profile("jkv")

# Installed for the whole session: modules imported later, by tests, are type-checked on every call.
_hook = install_import_hook(["jkv", "converters"], "beartype.beartype")

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
