"""Show what stayed in the KV buffer: one sample of a traced run, token by token, as one HTML file.

    python -m jkv.decode --trace --out runs/a && python -m jkv.view runs/a

Several runs stand side by side, for the same prompt. In a notebook: jkv.view("runs/a").
"""

import dataclasses
import os
import pathlib
from typing import TYPE_CHECKING

from jkv import flags
from jkv.callable_module import make_callable
from jkv.cli import run as run_command
from jkv.errors import UserError

if TYPE_CHECKING:
    from jkv.report.view.shown import View

PAGE = "view.html"
_MOST_RUNS = 4


@dataclasses.dataclass(frozen=True)
class ViewConfig:
    """Which sample of which runs, and where the page goes."""

    runs: list[str] = dataclasses.field(default_factory=list)
    beside: str | None = None
    id: str | None = None
    sample: int | None = None
    eviction: int | None = None
    out: str | None = None
    picture: str | None = None

    def __post_init__(self):
        if not self.every_run:
            raise UserError("no run is given", where="RUN", mend="give the --out of a decode run made with --trace")
        if len(self.every_run) > _MOST_RUNS:
            what = f"{len(self.every_run)} runs don't fit side by side"
            raise UserError(what, where="RUN", mend=f"give at most {_MOST_RUNS}")
        if self.eviction is not None and self.eviction < 0:
            raise UserError(f"{self.eviction} is below 0", where="--eviction", mend="0 is before the first")

    @property
    def every_run(self) -> list[str]:
        """The runs to show, from left to right."""
        return [*self.runs, *([] if self.beside is None else [self.beside])]


HELP = {
    "runs": "what --out was in a decode run with --trace; more than one: side by side",
    "beside": "one more run, to the right",
    "id": "of the problem (default: that of the sample with the most evictions)",
    "sample": "number of the completion, from 0 (default: the one with the most evictions)",
    "eviction": "show it after so many evictions (default: at its end)",
    "out": f"the page to write (default: {PAGE} in the first run's directory)",
    "picture": "also write a picture, for papers: FILE.png, .svg or .pdf",
}


def parse(argv: list[str] | None) -> ViewConfig:
    """Flags to a config. Raises UserError."""
    return flags.parse(ViewConfig, argv, prog="python -m jkv.view", description=__doc__, help=HELP, positional="runs")


def view(
    run: str | os.PathLike[str],
    *beside: str | os.PathLike[str],
    id: str | None = None,
    sample: int | None = None,
    eviction: int | None = None,
    height: int = 760,
) -> "View":
    """What stayed in the KV buffer while a sample was decoded; a notebook shows it inline.

    run: the ``--out`` directory of a decode run made with ``--trace``, or what ``jkv.decode(..., trace=True)`` gave.
    beside: more such runs of the same task, shown side by side.  id, sample: which completion (default: the one with
    the most evictions).  eviction: show it after so many evictions (default: at its end).  height: of the frame in a
    notebook, in pixels.
    ``save(path)`` of what is returned writes it: .html is the page, .png, .svg and .pdf are the picture.

    Raises UserError for a directory without a trace, an id or sample that isn't there, and damaged files.
    """
    from jkv.report.view.history import common_sample, read_history
    from jkv.report.view.shown import View

    runs = [pathlib.Path(r).expanduser() for r in (run, *beside)]
    id, sample = common_sample(runs, id, sample)
    histories = tuple(read_history(path, id, sample) for path in runs)
    if len({history.pieces[: history.prompt_tokens] for history in histories}) > 1:
        what = f"have different prompts for {id!r}"
        raise UserError(what, where=" and ".join(map(str, runs)), mend="compare runs of the same task and tokenizer")
    return View(histories, eviction, height)


def main(argv: list[str] | None = None) -> None:
    """Parse, then call one function."""
    config = parse(argv)
    runs = config.every_run
    shown = view(*runs, id=config.id, sample=config.sample, eviction=config.eviction)
    out = pathlib.Path(config.out).expanduser() if config.out else pathlib.Path(runs[0]).expanduser() / PAGE
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"{out.name} is no .html file", where="--out", mend="--picture writes .png, .svg and .pdf")
    for path in (out, *([pathlib.Path(config.picture).expanduser()] if config.picture else [])):
        shown.save(path)
        print(path)


if __name__ == "__main__":
    run_command(main)
else:
    make_callable(__name__, view)
