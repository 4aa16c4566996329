"""How long does a policy remember? A fact stated once, early in a long thought, is asked for after many evictions.

    python -m jkv.probe --out runs/probe

Prompt and thought are given (they are the demo's, see jkv/demo/probe.py) and read within the budget as decoding would
read them; the next token is right or wrong. Written: probe.csv, probe.md and the picture probe.png, .svg.
"""

from typing import TYPE_CHECKING

from jkv.terminal.command import run as run_command

if TYPE_CHECKING:
    from jkv.config.probe import ProbeConfig


def parse(argv: list[str] | None) -> "ProbeConfig":
    """Flags, and the YAML file they name, to a config. Raises UserError."""
    from jkv.config import command_line
    from jkv.config.probe import ProbeConfig

    return command_line.parse(ProbeConfig, argv, prog="python -m jkv.probe", description=__doc__)


def main(argv: list[str] | None = None) -> None:
    """Parse, then call one function."""
    config = parse(argv)
    from jkv.run.probe import run_probe

    run_probe(config)


if __name__ == "__main__":
    run_command(main)
