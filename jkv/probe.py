"""How long does a policy remember? A fact is stated once, early in a long thought, and asked for after many evictions.

    python -m jkv.probe --out runs/probe

Prompt and thought are given (jkv/demo/probe.py makes them from the demo task) and read within the budget, as decoding
would read them; the next token is right or wrong. --out gets probe.csv, probe.md and the picture probe.png, .svg.
"""

from typing import TYPE_CHECKING

from jkv.terminal.command import run as run_command

if TYPE_CHECKING:
    from jkv.config.probe import ProbeConfig


def parse(argv: list[str] | None) -> "ProbeConfig":
    """The configuration that flags, and the YAML file they name, give. Raises UserError if they are wrong.

    Args:
        argv: the arguments, None for those of this process.
    """
    from jkv.config import command_line
    from jkv.config.probe import ProbeConfig

    return command_line.parse(ProbeConfig, argv, prog="python -m jkv.probe", description=__doc__)


def main(argv: list[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: the arguments, None for those of this process.
    """
    config = parse(argv)
    from jkv.run.probe import run_probe

    run_probe(config)


if __name__ == "__main__":
    run_command(main)
