"""XLA's flags for quick compilation. Imported before JAX, which reads them once, when it is."""

from importlib import metadata

# Without XLA's newer emitters a small program compiles in half the time. jaxlib 0.11 has no others any more, and a flag
# that XLA doesn't know ends the process.
_EMITTERS = "xla_cpu_use_fusion_emitters"
_HAS_OLD_ONES = tuple(map(int, metadata.version("jaxlib").split(".")[:2])) < (0, 11)

QUICK_FLAGS = (f"--{_EMITTERS}=false",) if _HAS_OLD_ONES else ()
USERS_OPTIONS: dict[str, bool] = {_EMITTERS: True} if _HAS_OLD_ONES else {}
