"""What a benchmark's YAML file says. jkv.tasks.benchmark explains the fields."""

import dataclasses
import pathlib

import pydantic
import yaml

from jkv.errors import UserError

SHIPPED = pathlib.Path(__file__).parent / "benchmarks"
BENCHMARKS = tuple(sorted(path.stem for path in SHIPPED.glob("*.yaml")))


@pydantic.dataclasses.dataclass(frozen=True, config={"extra": "forbid"})
class Benchmark:
    """The YAML file's fields; the module's docstring explains them. gated: the hub asks to accept terms first.
    problems: how many there are, for `jkv.sweep --dry-run`."""

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
    """The file's fields, checked. Raises UserError."""
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
        raise UserError("needs one of hub and data", where=str(file), mend="say where the rows are")
    return benchmark
