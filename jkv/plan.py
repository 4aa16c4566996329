"""Does it fit, and how fast could it be? Compiles a run's real programs for a TPU that needn't be here, from shapes.

Prefill and decode are compiled by libtpu on this machine's CPU; memory, copies and collectives are read off them.
"""

from jkv.cli import run as run_command

PROG = "python -m jkv.plan"


def main(argv: list[str] | None = None) -> None:
    """Parse, then call one function."""
    import json

    from jkv import flags
    from jkv.planning.chips import parse_topology, prepare, require

    prepare()  # before anything imports jax
    from jkv.planning.plan_config import HELP, PlanConfig
    from jkv.run_config import check_words

    config = flags.parse(PlanConfig, argv, prog=PROG, description=__doc__, help=HELP)
    require()
    parse_topology(config.topology)
    check_words(config.mesh)
    from rich.console import Console
    from rich.text import Text

    from jkv.planning.report import plan, table
    from jkv.show import Screen

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
