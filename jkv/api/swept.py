"""``jkv.sweep(...)``: a sweep from Python, and what it returns."""

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
    """A finished sweep.

    Attributes:
        results: one for each run, in the order in which they ran.
        directory: where the sweep's files are.
    """

    results: list[Result]
    directory: pathlib.Path

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A flat dictionary for each run, as ``pandas.DataFrame`` takes them: the run's summary, with model, task,
        policy and budget as the sweep calls them."""
        return [
            {**r.summary, "model": r.model, "task": r.task, "policy": r.label, "budget": r.budget} for r in self.results
        ]

    @property
    def figure(self) -> Picture | None:
        """Pass@1 (bars) and tokens/s (a line) of one policy against its budget. None if only the full cache has run."""
        return picture(self.directory / "figure.png")

    @property
    def policies(self) -> Picture | None:
        """Pass@1 against the budget, a line for each policy. None if nothing is graded."""
        return picture(self.directory / "policies.png")

    def __fspath__(self) -> str:
        return str(self.directory)

    def __repr__(self) -> str:
        screen = Screen(file=io.StringIO(), width=140, force_terminal=False, force_jupyter=False)
        with screen.capture() as text:
            screen.print(*results_tables(self.results))
        return text.get().rstrip()

    def _repr_markdown_(self) -> str:
        return results_markdown(self.results)


def sweep_from_python(config: str | None, arguments: Mapping[str, Any]) -> Swept:
    """Run ``python -m jkv.sweep``, in this process.

    Args:
        config: a YAML file of arguments.
        arguments: values by field of SweepConfig; they override the file.

    Raises:
        UserError: anything that a user can mend.
    """
    sweep_config = flags.from_arguments(SweepConfig, arguments, config=config)
    if sweep_config.dry_run:
        raise UserError("only prints what would run", where="dry_run", mend="use python -m jkv.sweep --dry-run")
    with status_line():
        results = run_sweep(sweep_config, show=False)
    return Swept(results, pathlib.Path(sweep_config.out or "").expanduser())
