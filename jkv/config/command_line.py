"""From a command's flags to its configuration, with the sections of its help."""

from typing import TypeVar

from jkv.config.decode import DecodeConfig
from jkv.terminal import flags

_C = TypeVar("_C")

# The sections of --help and the fields in each, for all commands alike. A command's fields that are in none of them
# come first.
GROUPS: dict[str, tuple[str, ...]] = {
    "model": ("model", "models", "dtype", "weights", "kv"),
    "policy and budget": (
        "policy", "policies", "budget", "budgets", "full", "window", "ratio", "retain", "sinks", "pin_prompt",
        "granularity", "options", "register", "predictor", "long_prompts",
    ),
    "task": ("task", "tasks", "limit", "samples", "max_new_tokens", "ignore_eos"),
    "sampling": ("temperature", "top_p", "top_k", "seed"),
    "output": ("out", "trace", "figure", "overlay", "json", "quiet"),
    "machine": ("batch_size", "implementation", "mesh", "topology", "dry_run", "max_batch"),
}  # fmt: skip


def parse(
    cls: type[_C], argv: list[str] | None, *, prog: str, description: str | None, positional: str | None = None
) -> _C:
    """The configuration that a command's flags, and the YAML file they name, give.

    Args:
        cls: a dataclass of `jkv.config`. A field without a docstring has the help text of DecodeConfig's field of the
            same name.
        argv: the arguments, None for those of this process.
        prog: the command's name in its help.
        description: the help's first lines.
        positional: the field that takes the arguments without a flag, if there is one.

    Raises:
        UserError: an unknown flag or a wrong value.
    """
    return flags.parse(
        cls, argv, prog=prog, description=description, positional=positional, like=DecodeConfig, groups=GROUPS
    )
