"""Decode a task with a model, within a KV budget. Without arguments it runs the demo, in about a minute on any CPU."""

import os
from typing import TYPE_CHECKING, Any

from jkv.callable_module import make_callable
from jkv.distributed import hosts
from jkv.terminal.command import run as run_command

if TYPE_CHECKING:
    from jkv.api.decoded import Decoded
    from jkv.config.decode import DecodeConfig
    from jkv.load import Loaded

PROG = "python -m jkv.decode"


def parse(argv: list[str] | None) -> "DecodeConfig":
    """The configuration that flags, and the YAML file they name, give. Raises UserError if they are wrong.

    Args:
        argv: the arguments, None for those of this process.
    """
    from jkv.config import command_line
    from jkv.config.decode import DecodeConfig

    return command_line.parse(DecodeConfig, argv, prog=PROG, description=__doc__)


def decode(
    model: "str | os.PathLike[str] | Loaded | None" = None, *, config: str | None = None, **flags: Any
) -> "Decoded":
    """Decode a task within a KV budget, from Python: ``jkv.decode("demo-llama", policy="dynts", budget=96)``.

    Args:
        model: demo-llama (the default), demo-qwen, a directory, a hub id, or what `jkv.load` returned, whose weights
            several runs can share.
        config: a YAML file of arguments; those that are given here override it.
        flags: the flags of ``python -m jkv.decode``, with ``_`` for ``-``: policy, budget, task, limit, samples, trace,
            out and so on. ``task`` may also be a list of rows, such as
            ``[{"id": "q1", "messages": [{"role": "user", "content": "..."}], "answer": "42"}]``.

    Returns:
        The finished run: a sequence of its samples, with their ``summary`` and ``directory``.

    Raises:
        UserError: anything that a user can mend, in one line.
    """
    from jkv.api.decoded import decode_from_python

    return decode_from_python(model, config, flags)


def main(argv: list[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: the arguments, None for those of this process.
    """
    config = parse(argv)
    hosts.join()
    # Imported here, so that a failure or Ctrl-C while JAX is imported ends in one line.
    from jkv.run.decode import run
    from jkv.terminal.screen import Screen

    run(config, screen=None if config.quiet else Screen(highlight=False))


if __name__ == "__main__":
    run_command(main)
else:
    make_callable(__name__, decode)
