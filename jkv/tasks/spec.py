"""The schema of a benchmark's YAML file. ``jkv.tasks.benchmark`` shows an example."""

import dataclasses
import pathlib

import pydantic
import yaml

from jkv.errors import UserError

SHIPPED = pathlib.Path(__file__).parent / "benchmarks"
BENCHMARKS = tuple(sorted(path.stem for path in SHIPPED.glob("*.yaml")))


@pydantic.dataclasses.dataclass(frozen=True, config={"extra": "forbid"})
class Benchmark:
    """The fields of the YAML file.

    Attributes:
        format: mathematics, multiple_choice, or the name of a Python file beside the YAML.
        columns: the format's names, each with the data set's column (or list of columns) that holds it.
        hub: the data set's name on the Hugging Face Hub; None if ``data`` is given.
        revision: commit or branch of the data set on the Hub.
        data: file or folder beside the YAML; None if ``hub`` is given.
        subset: which configuration of the data set; None: its default one.
        split: which split of the data set.
        gated: the Hub asks users to accept terms before they can download it.
        problems: how many there are, for ``jkv.sweep --dry-run``; None: unknown.
    """

    format: str
    columns: dict[str, str | list[str]]
    hub: str | None = None
    revision: str = "main"
    data: str | None = None
    subset: str | None = None
    split: str = "test"
    gated: bool = False
    problems: int | None = None


def read_yaml(file: pathlib.Path) -> Benchmark:
    """Read and check a benchmark's YAML file.

    Raises:
        UserError: there is no such file, it isn't YAML, a field is unknown, missing or wrong, or it has both or neither
            of ``hub`` and ``data``.
    """
    try:
        content = yaml.safe_load(file.read_text("utf-8"))
        benchmark = pydantic.TypeAdapter(Benchmark).validate_python(content)
    except FileNotFoundError:
        raise UserError("no such file", where=str(file), mend=f"tasks are demo, {', '.join(BENCHMARKS)}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"can't be read as YAML ({error})", where=str(file)) from None
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the file"
        known = ", ".join(f.name for f in dataclasses.fields(Benchmark))
        raise UserError(f"{field}: {first['msg']}", where=str(file), mend=f"fields are {known}") from None
    if (benchmark.hub is None) == (benchmark.data is None):
        raise UserError("needs one of hub and data", where=str(file), mend="they name where the rows are")
    return benchmark
