"""Every test runs with strict dtype and rank promotion and with jaxtyping annotations checked at run time."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# Half of a small program's compilation; see tests/compilation.py, which may be imported only after this.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false".strip()

import jax
from jaxtyping import install_import_hook

# Installed for the whole session: modules imported later, by tests, are type-checked on every call.
_hook = install_import_hook(["jkv", "converters"], "beartype.beartype")

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
