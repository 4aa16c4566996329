"""Decode with every policy at every budget, and compare accuracy (with paired intervals), throughput and slots.

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
    """The configuration that flags, and the YAML file they name, give. Raises UserError if they are wrong.

    Args:
        argv: the arguments, None for those of this process.
    """
    from jkv.config import command_line
    from jkv.config.sweep import SweepConfig

    return command_line.parse(SweepConfig, argv, prog="python -m jkv.sweep", description=__doc__)


def sweep(*, config: str | None = None, **flags: Any) -> "Swept":
    """Decode with every policy at every budget, from Python.

    Args:
        config: a YAML file of arguments, such as configs/sweep_demo.yaml; those that are given here override it.
        flags: the flags of ``python -m jkv.sweep``, with ``_`` for ``-``: models, policies, budgets, limit and so on.
            ``out`` is needed: the same call continues a sweep that was stopped.

    Returns:
        The finished sweep, whose tables a notebook shows; its ``figure`` and ``policies`` are pictures.

    Raises:
        UserError: anything that a user can mend, in one line.
    """
    from jkv.api.swept import sweep_from_python

    return sweep_from_python(config, flags)


def main(argv: list[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: the arguments, None for those of this process.
    """
    config = parse(argv)
    if config.dry_run:
        from jkv.planning.dry_run import print_dry_run

        print_dry_run(config)
        return
    hosts.join()
    from jkv.run.sweep import run_sweep

    run_sweep(config)


if __name__ == "__main__":
    run_command(main)
else:
    make_callable(__name__, sweep)
