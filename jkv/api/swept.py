"""``jkv.sweep(...)``: a sweep from Python, and what comes back."""

import dataclasses
import io
import pathlib
from collections.abc import Mapping
from typing import Any

from jkv.api.picture import Picture, picture
from jkv.config.sweep import SweepConfig
from jkv.errors import UserError
from jkv.report.results import Result, results_markdown, results_tables
from jkv.run.sweep import run_sweep
from jkv.terminal import flags
from jkv.terminal.notebook_line import status_line
from jkv.terminal.screen import Screen


@dataclasses.dataclass(frozen=True, repr=False)
class Swept:
    """A finished sweep. results: a `Result` a run, in the order they ran.  directory: where the files are."""

    results: list[Result]
    directory: pathlib.Path

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A flat dictionary a run, fit for ``pandas.DataFrame``: what the run is called, then its summary."""
        return [
            {**r.summary, "model": r.model, "task": r.task, "policy": r.label, "budget": r.budget} for r in self.results
        ]

    @property
    def figure(self) -> Picture | None:
        """Pass@1 as bars and tokens/s as a line against the budget, of one policy; None without a policy."""
        return picture(self.directory / "figure.png")

    @property
    def policies(self) -> Picture | None:
        """Pass@1 against the budget, a line a policy; None where nothing is graded."""
        return picture(self.directory / "policies.png")

    def __fspath__(self) -> str:
        return str(self.directory)

    def __repr__(self) -> str:
        screen = Screen(file=io.StringIO(), width=140, force_terminal=False, force_jupyter=False)
        with screen.capture() as said:
            screen.print(*results_tables(self.results))
        return said.get().rstrip()

    def _repr_markdown_(self) -> str:
        return results_markdown(self.results)


def sweep_from_python(config: str | None, words: Mapping[str, Any]) -> Swept:
    """Run ``python -m jkv.sweep`` with these words as its flags. Raises UserError."""
    settled = flags.from_arguments(SweepConfig, words, config=config)
    if settled.dry_run:
        raise UserError("only says what would run", where="dry_run", mend="use python -m jkv.sweep --dry-run")
    with status_line():
        results = run_sweep(settled, show=False)
    return Swept(results, pathlib.Path(settled.out or "").expanduser())
