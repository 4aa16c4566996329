"""Does a run fit a TPU, and how fast could it be? Compiles the run's real programs for a TPU that need not be here.

libtpu compiles prefill and decode on this machine's CPU, from shapes alone. Memory, copies and collectives are read
from the compiled programs.
"""

from jkv.terminal.command import run as run_command

PROG = "python -m jkv.plan"


def main(argv: list[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: the arguments, None for those of this process.
    """
    import json

    from jkv.planning.chips import parse_topology, prepare, require

    prepare()  # must come before jax is imported
    from jkv.config import command_line
    from jkv.config.decode import check_mesh_text
    from jkv.config.plan import PlanConfig

    config = command_line.parse(PlanConfig, argv, prog=PROG, description=__doc__)
    require()
    parse_topology(config.topology)
    check_mesh_text(config.mesh)
    from rich.console import Console
    from rich.text import Text

    from jkv.planning.report import plan, table
    from jkv.terminal.screen import Screen

    screen = Screen(stderr=True, highlight=False)
    if screen.is_terminal and not screen.is_dumb_terminal:
        with screen.status("", spinner="line") as status:
            figures = plan(config, lambda what: status.update(Text(what)))
    else:
        figures = plan(config, lambda what: screen.print(what, soft_wrap=True))
    if config.json:
        print(json.dumps(figures))
    else:
        Console().print(table(figures))


if __name__ == "__main__":
    run_command(main)
