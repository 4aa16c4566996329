"""Decode with every policy at every budget, and compare: accuracy with paired intervals, throughput, slots, figures.

python -m jkv.sweep --config configs/sweep_demo.yaml --out runs/demo
"""

from typing import TYPE_CHECKING, Any

from jkv.callable_module import make_callable
from jkv.distributed import hosts
from jkv.terminal.command import run as run_command

if TYPE_CHECKING:
    from jkv.api.swept import Swept
    from jkv.config.sweep import SweepConfig


def parse(argv: list[str] | None) -> "SweepConfig":
    """Flags, and the YAML file they name, to a config. Raises UserError."""
    from jkv.config import command_line
    from jkv.config.sweep import SweepConfig

    return command_line.parse(SweepConfig, argv, prog="python -m jkv.sweep", description=__doc__)


def sweep(*, config: str | None = None, **words: Any) -> "Swept":
    """Decode with every policy at every budget, from Python; a notebook shows tables, ``.figure`` and ``.policies``.

    config: a YAML file of arguments, as configs/sweep_demo.yaml; those given override it.  words: the flags of
    ``python -m jkv.sweep`` with _ for -, as models, policies, budgets, limit.  out is needed: the same call continues
    a sweep that was stopped.  Raises UserError for what a user can mend, in one line.
    """
    from jkv.api.swept import sweep_from_python

    return sweep_from_python(config, words)


def main(argv: list[str] | None = None) -> None:
    """Parse, then call one function."""
    config = parse(argv)
    if config.dry_run:
        from jkv.planning.dry_run import say

        say(config)
        return
    hosts.join()
    from jkv.run.sweep import run_sweep

    run_sweep(config)


if __name__ == "__main__":
    run_command(main)
else:
    make_callable(__name__, sweep)
