"""Published values to draw beside one's own: JSON files with the source of their numbers (configs/figures)."""

import json
import pathlib
from typing import Annotated

import pydantic

from jkv.errors import UserError
from jkv.files.shipped import FIGURES

PAPER = "paper"


@pydantic.dataclasses.dataclass(frozen=True)
class Panel:
    """A model's published values, one for each budget.

    Attributes:
        pass_at_1: in percent.
        throughput_tps: in tokens a second; None if not published.
        hf_id: the model's id on the Hugging Face Hub.
    """

    pass_at_1: list[float]
    throughput_tps: list[float] | None = None
    hf_id: str | None = None


@pydantic.dataclasses.dataclass(frozen=True)
class Published:
    """A published figure.

    Attributes:
        title: of the publication.
        source: where in it the values are.
        budgets: KV budgets, in slots a row.
        panels: the values of each model, by the model's name in the publication.
    """

    title: str
    source: str
    budgets: Annotated[list[int], pydantic.Field(min_length=1)]
    panels: Annotated[dict[str, Panel], pydantic.Field(min_length=1)]

    def of(self, *names: str) -> Panel | None:
        """The panel of a model; None if there is none. names: candidates for its name or its id on the Hub."""
        found = (panel for name, panel in self.panels.items() if name in names or panel.hf_id in names)
        return next(found, None)


def read_published(name: str) -> Published:
    """Read published values.

    Args:
        name: ``paper`` for those of DynTS (arXiv:2601.18383), or the path of a file.

    Raises:
        UserError: the file can't be read, or it isn't JSON with these fields.
    """
    path = FIGURES / "dynts.json" if name == PAPER else pathlib.Path(name).expanduser()
    mend = f"give {PAPER}, or a file like {FIGURES / 'dynts.json'}"
    try:
        published = pydantic.TypeAdapter(Published).validate_python(json.loads(path.read_text("utf-8")))
    except OSError as error:
        raise UserError(f"can't be read ({error.strerror})", where=str(path), mend=mend) from None
    except pydantic.ValidationError as error:  # before ValueError, of which it is a subclass
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"{where}: {first['msg']}", where=str(path), mend=mend) from None
    except ValueError as error:
        raise UserError(f"is not JSON ({error})", where=str(path), mend=mend) from None
    for model, panel in published.panels.items():
        for values in (panel.pass_at_1, panel.throughput_tps):
            if values is not None and len(values) != len(published.budgets):
                what = f"{model} has {len(values)} values for {len(published.budgets)} budgets"
                raise UserError(what, where=str(path), mend="give one value for each budget")
    return published
