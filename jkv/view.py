"""Show what stayed in the KV buffer while a sample was decoded, token by token, as one HTML file.

    python -m jkv.decode --trace --out runs/a && python -m jkv.view runs/a

Several runs stand side by side, for the same prompt. In a notebook: jkv.view("runs/a").
"""

import pathlib
from typing import TYPE_CHECKING

from jkv.api.viewed import view
from jkv.callable_module import make_callable
from jkv.terminal.command import run as run_command

if TYPE_CHECKING:
    from jkv.config.view import ViewConfig


def parse(argv: list[str] | None) -> "ViewConfig":
    """The configuration that flags, and the YAML file they name, give. Raises UserError if they are wrong.

    Args:
        argv: the arguments, None for those of this process.
    """
    from jkv.config import command_line
    from jkv.config.view import ViewConfig

    return command_line.parse(ViewConfig, argv, prog="python -m jkv.view", description=__doc__, positional="runs")


def main(argv: list[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: the arguments, None for those of this process.
    """
    from jkv.config.view import PAGE

    config = parse(argv)
    runs = config.every_run
    shown = view(*runs, id=config.id, sample=config.sample, eviction=config.eviction)
    out = pathlib.Path(config.out).expanduser() if config.out else pathlib.Path(runs[0]).expanduser() / PAGE
    for path in (out, *([pathlib.Path(config.picture).expanduser()] if config.picture else [])):
        shown.save(path)
        print(path)


if __name__ == "__main__":
    run_command(main)
else:
    make_callable(__name__, view)
