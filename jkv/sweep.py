"""Decode with every policy at every budget, and compare: accuracy with paired intervals, throughput, slots, figures.

python -m jkv.sweep --config configs/sweep_demo.yaml --out runs/demo
"""

from typing import TYPE_CHECKING

from jkv import hosts
from jkv.cli import run as run_command

if TYPE_CHECKING:
    from jkv.sweep_config import SweepConfig


def parse(argv: list[str] | None) -> "SweepConfig":
    """Flags, and the YAML file they name, to a config. Raises UserError."""
    from jkv import flags
    from jkv.sweep_config import HELP, SweepConfig

    return flags.parse(SweepConfig, argv, prog="python -m jkv.sweep", description=__doc__, help=HELP)


def main(argv: list[str] | None = None) -> None:
    """Parse, then call one function."""
    config = parse(argv)
    if config.dry_run:
        from jkv.dry_run import say

        say(config)
        return
    hosts.join()
    from jkv.grid import run_sweep

    run_sweep(config)


if __name__ == "__main__":
    run_command(main)
