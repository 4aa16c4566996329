"""jkv: budgeted reasoning decode in JAX."""

__version__ = "0.1.0"
