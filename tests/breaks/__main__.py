"""``python -m tests.breaks``: break jkv in many places, one at a time, and see whether a test notices each."""

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tests.breaks.breaks import BREAKS
from tests.breaks.runner import Outcome, copied, misplaced
from tests.breaks.spec import Break, Tree

REPOSITORY = pathlib.Path(__file__).parents[2]


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the arguments ask for. Returns the exit code: 0 if every break was caught, else 1; 2 for a mistake."""
    parser = argparse.ArgumentParser(prog="python -m tests.breaks", description=__doc__, allow_abbrev=False)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these breaks")
    parser.add_argument("--room", nargs="+", help="the breaks of these rooms")
    parser.add_argument("--tier", choices=("plain", "slow"), help="those that plain, or only slow, tests notice")
    parser.add_argument("--list", action="store_true", help="print the breaks and whether they have their place")
    parser.add_argument("--check-clean", action="store_true", help="first see that the tests pass without a break")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="also write the outcomes there")
    parser.add_argument("--tree", type=pathlib.Path, default=REPOSITORY, help="the repository (default: this one)")
    arguments = parser.parse_args(argv)
    breaks = [
        it
        for it in BREAKS
        if (not arguments.only or it.name in arguments.only)
        and (not arguments.room or it.room in arguments.room)
        and (not arguments.tier or it.tier == arguments.tier)
    ]
    unknown = {*(arguments.only or ()), *(arguments.room or ())} - {
        word for it in BREAKS for word in (it.name, it.room)
    }
    if unknown or not breaks:
        print(f"no such break or room: {', '.join(sorted(unknown))}" if unknown else "no breaks", file=sys.stderr)
        return 2
    if lost := misplaced(Tree(arguments.tree), breaks):
        print(*lost, sep="\n", file=sys.stderr)
        return 2
    if arguments.list:
        Console(width=None if sys.stdout.isatty() else 120).print(_listed(breaks))
        return 0
    return _run(breaks, arguments.tree.resolve(), check_clean=arguments.check_clean, json_file=arguments.json)


def _run(breaks: Sequence[Break], source: pathlib.Path, *, check_clean: bool, json_file: pathlib.Path | None) -> int:
    screen = Console(stderr=True, highlight=False)
    outcomes: list[Outcome] = []
    with copied(source) as copy:
        if check_clean:
            screen.print(f"the tests of {len(breaks)} breaks, without a break")
            if wrong := copy.clean(breaks):
                screen.print(Text(wrong), soft_wrap=True)
                return 1
        for number, it in enumerate(breaks, 1):
            outcome = copy.run(it)
            outcomes.append(outcome)
            said = "caught" if outcome.caught else "NOT CAUGHT"
            line = f"{number} of {len(breaks)}: {it.room}, {it.name}: {said}, {outcome.seconds:.0f} s; {outcome.by}"
            screen.print(Text(line), soft_wrap=True)
            if json_file is not None:  # after each: a run takes many minutes
                json_file.write_text(json.dumps([dataclasses.asdict(o) for o in outcomes], indent=1) + "\n", "utf-8")
    Console(width=None if sys.stdout.isatty() else 120).print(_table(outcomes))
    return 0 if all(outcome.caught for outcome in outcomes) else 1


def _table(outcomes: Sequence[Outcome]) -> Table:
    table = Table(
        title=f"{sum(o.caught for o in outcomes)} of {len(outcomes)} breaks were caught", title_justify="left"
    )
    for heading in ("break", "room", "caught by", "tier"):
        table.add_column(heading, overflow="fold")
    table.add_column("seconds", justify="right")
    for o in outcomes:
        test, bracket, parameters = o.by.partition("[")
        by = test.rpartition("/")[2] + bracket + parameters[:30] if o.caught else f"NOBODY: {o.by}"
        table.add_row(
            Text(o.name), o.room, Text(by), o.tier, f"{o.seconds:.0f}", style=None if o.caught else "bold red"
        )
    return table


def _listed(breaks: Sequence[Break]) -> Table:
    table = Table(title=f"{len(breaks)} breaks in {len({it.room for it in breaks})} rooms", title_justify="left")
    for heading in ("break", "room", "should be caught by", "tier"):
        table.add_column(heading, overflow="fold")
    for it in breaks:
        table.add_row(Text(it.name), it.room, Text("\n".join(it.tests)), it.tier)
    return table


if __name__ == "__main__":
    sys.exit(main())
