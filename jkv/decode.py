"""Decode a task with a model, within a KV budget. Without arguments: the demo, on any CPU in about a minute."""

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
    """Flags, and the YAML file they name, to a config. Raises UserError."""
    from jkv.config import command_line
    from jkv.config.decode import DecodeConfig

    return command_line.parse(DecodeConfig, argv, prog=PROG, description=__doc__)


def decode(
    model: "str | os.PathLike[str] | Loaded | None" = None, *, config: str | None = None, **words: Any
) -> "Decoded":
    """Decode a task within a KV budget, from Python: ``jkv.decode("demo-llama", policy="dynts", budget=96)``.

    model: demo-llama (the default), demo-qwen, a directory, a hub id, or what ``jkv.load`` returned: weights are then
    read once for several runs.  config: a YAML file of arguments; those given override it.  words: the flags of
    ``python -m jkv.decode`` with _ for -, as policy, budget, task, limit, samples, trace, out.  task may also be a list
    of rows, ``[{"id": "q1", "messages": [{"role": "user", "content": "..."}], "answer": "42"}]``.

    Raises UserError for what a user can mend, in one line.
    """
    from jkv.api.decoded import decode_from_python

    return decode_from_python(model, config, words)


def main(argv: list[str] | None = None) -> None:
    """Parse, then call one function. The imports wait until a failure or Ctrl-C in them is answered in one line."""
    config = parse(argv)
    hosts.join()
    from jkv.run.decode import run
    from jkv.terminal.screen import Screen

    run(config, closing=None if config.quiet else Screen(highlight=False))


if __name__ == "__main__":
    run_command(main)
else:
    make_callable(__name__, decode)
