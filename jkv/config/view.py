"""The configuration of ``python -m jkv.view``."""

import dataclasses

from jkv.errors import UserError

PAGE = "view.html"
_MOST_RUNS = 4


@dataclasses.dataclass(frozen=True)
class ViewConfig:
    """Which sample of which runs, and where the page goes."""

    runs: list[str] = dataclasses.field(default_factory=list)
    """directories of runs made with python -m jkv.decode --trace; several are shown side by side"""
    beside: str | None = None
    """one more run, shown to the right of the others"""
    id: str | None = None
    """id of the problem (default: that of the sample with the most evictions)"""
    sample: int | None = None
    """number of the completion, from 0 (default: the one with the most evictions)"""
    eviction: int | None = None
    """show the sample after this many evictions (default: at its end)"""
    out: str | None = None
    """page to write, an .html file (default: view.html in the first run's directory)"""
    picture: str | None = None
    """picture to write as well: FILE.png, .svg or .pdf"""

    def __post_init__(self):
        if not self.every_run:
            raise UserError("no run is given", where="RUN", mend="give the --out of a decode run made with --trace")
        if len(self.every_run) > _MOST_RUNS:
            what = f"{len(self.every_run)} runs don't fit side by side"
            raise UserError(what, where="RUN", mend=f"give at most {_MOST_RUNS}")
        if self.eviction is not None and self.eviction < 0:
            raise UserError(f"{self.eviction} is below 0", where="--eviction", mend="0 is before the first")
        if self.out is not None and not self.out.lower().endswith((".html", ".htm")):
            what = f"{self.out} is not a .html file"
            raise UserError(what, where="--out", mend="--picture writes .png, .svg and .pdf")

    @property
    def every_run(self) -> list[str]:
        """The runs to show, from left to right."""
        return [*self.runs, *([] if self.beside is None else [self.beside])]
