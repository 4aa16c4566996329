"""Every test runs with strict dtype and rank promotion and with jaxtyping annotations checked at run time."""

import os

from tests.quick_flags import QUICK_FLAGS

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# tests/compilation.py has the rest of quick compilation; it imports JAX, so only what comes after this may import it.
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *QUICK_FLAGS]).strip()

import jax
from jaxtyping import install_import_hook

# Installed for the whole session: modules imported later, by tests, are type-checked on every call.
_hook = install_import_hook(["jkv", "converters"], "beartype.beartype")

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
