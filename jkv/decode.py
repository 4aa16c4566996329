"""``python -m jkv.decode``: decode a task with a model, within a KV budget. Without arguments: the demo, on any CPU."""

from jkv import flags
from jkv.cli import run as run_command
from jkv.run_config import HELP, DecodeConfig


def parse(argv: list[str] | None) -> DecodeConfig:
    """Flags, and the YAML file they name, to a config. Raises UserError."""
    return flags.parse(DecodeConfig, argv, prog="python -m jkv.decode", description=__doc__, help=HELP)


def main(argv: list[str] | None = None) -> None:
    """Parse, then call one function."""
    config = parse(argv)
    from jkv.runner import run  # imports JAX: `--help` and bad flags answer at once

    run(config)


if __name__ == "__main__":
    run_command(main)
