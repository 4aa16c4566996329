"""Does it fit, and how fast could it be? Compiles a run's real programs for a TPU that needn't be here, from shapes.

Prefill and decode are compiled by libtpu on this machine's CPU; memory, copies and collectives are read off them.
"""

from jkv.terminal.command import run as run_command

PROG = "python -m jkv.plan"


def main(argv: list[str] | None = None) -> None:
    """Parse, then call one function."""
    import json

    from jkv.planning.chips import parse_topology, prepare, require

    prepare()  # before anything imports jax
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
