"""From a command's flags to its configuration: help texts are the docstrings under its fields, in named groups."""

from typing import TypeVar

from jkv.config.decode import DecodeConfig
from jkv.terminal import flags

_C = TypeVar("_C")

# The sections of --help, and the fields that stand in each, whichever command has them. A command's other fields come
# first, in a section of its own.
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
    """``argv`` as an instance of a command's configuration.

    Args:
        cls: a dataclass of `jkv.config`. A field without a docstring of its own means what it means in DecodeConfig.
        argv: the arguments, None for those of this process.
        prog: what the command is called in its help.
        description: the help's first lines.
        positional: the field that takes the arguments without a flag, if there is one.

    Raises:
        UserError: an unknown flag or a wrong value.
    """
    return flags.parse(
        cls, argv, prog=prog, description=description, positional=positional, like=DecodeConfig, groups=GROUPS
    )
