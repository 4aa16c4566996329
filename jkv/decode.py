"""Decode a task with a model, within a KV budget. Without arguments: the demo, on any CPU in about a minute."""

from typing import TYPE_CHECKING

from jkv import hosts
from jkv.cli import run as run_command

if TYPE_CHECKING:
    from jkv.run_config import DecodeConfig

PROG = "python -m jkv.decode"


def parse(argv: list[str] | None) -> "DecodeConfig":
    """Flags, and the YAML file they name, to a config. Raises UserError."""
    from jkv import flags
    from jkv.run_config import HELP, DecodeConfig

    return flags.parse(DecodeConfig, argv, prog=PROG, description=__doc__, help=HELP)


def main(argv: list[str] | None = None) -> None:
    """Parse, then call one function. The imports wait until a failure or Ctrl-C in them is answered in one line."""
    config = parse(argv)
    hosts.join()
    from jkv.runner import run

    run(config)


if __name__ == "__main__":
    run_command(main)
