"""Published figures, to lay over one's own: JSON with the source of every number (configs/figures)."""

import json
import pathlib
from typing import Annotated

import pydantic

from jkv.errors import UserError
from jkv.files.shipped import FIGURES

PAPER = "paper"


@pydantic.dataclasses.dataclass(frozen=True)
class Panel:
    """A model's numbers, one a budget: Pass@1 in percent, tokens/s."""

    pass_at_1: list[float]
    throughput_tps: list[float] | None = None
    hf_id: str | None = None


@pydantic.dataclasses.dataclass(frozen=True)
class Published:
    """title and source say where the numbers are from. panels: by what the model is called."""

    title: str
    source: str
    budgets: Annotated[list[int], pydantic.Field(min_length=1)]
    panels: Annotated[dict[str, Panel], pydantic.Field(min_length=1)]

    def of(self, *names: str) -> Panel | None:
        """The panel of a model by any of its names: what it is called, or its id on the hub."""
        found = (panel for name, panel in self.panels.items() if name in names or panel.hf_id in names)
        return next(found, None)


def read_published(name: str) -> Published:
    """``paper`` (DynTS, arXiv:2601.18383) or a file. Raises UserError for a file that isn't one."""
    path = FIGURES / "dynts.json" if name == PAPER else pathlib.Path(name).expanduser()
    mend = f"give {PAPER}, or a file like {FIGURES / 'dynts.json'}"
    try:
        published = pydantic.TypeAdapter(Published).validate_python(json.loads(path.read_text("utf-8")))
    except OSError as error:
        raise UserError(f"can't be read ({error.strerror})", where=str(path), mend=mend) from None
    except pydantic.ValidationError as error:  # a ValueError, too
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"{where}: {first['msg']}", where=str(path), mend=mend) from None
    except ValueError as error:
        raise UserError(f"is not JSON ({error})", where=str(path), mend=mend) from None
    for model, panel in published.panels.items():
        for values in (panel.pass_at_1, panel.throughput_tps):
            if values is not None and len(values) != len(published.budgets):
                what = f"{model} has {len(values)} values for {len(published.budgets)} budgets"
                raise UserError(what, where=str(path), mend="give one a budget")
    return published
