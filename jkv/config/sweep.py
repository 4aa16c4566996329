"""The configuration of ``python -m jkv.sweep``: what is combined with what, and the options that all runs share."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any, Literal, get_type_hints

import pydantic

from jkv.config.decode import DecodeConfig, check_mesh_text
from jkv.errors import UserError
from jkv.policies import Granularity

# Options that an entry of ``policies`` may set for itself, and those that one of ``models`` may.
_OF_A_POLICY = (
    "options", "predictor", "window", "sinks", "pin_prompt", "granularity", "ratio", "retain", "long_prompts",
    "batch_size",
)  # fmt: skip
_OF_A_MODEL = ("window", "sinks", "ratio", "retain", "batch_size", "dtype", "weights", "kv")
# Options that the full cache has no use for.
_OF_A_BUDGET = ("window", "ratio", "retain", "sinks", "pin_prompt", "granularity", "long_prompts")


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """Models x (the full cache, and policies x budgets) x tasks. Fields that are no lists apply to all runs."""

    models: list[Any] = dataclasses.field(default_factory=lambda: ["demo-llama"])
    """models to compare: demo-llama, demo-qwen, directories, hub ids; in YAML also mappings, as in {model: DIR, name:
    R1, ratio: 0.3} (default: demo-llama)"""
    tasks: list[str] = dataclasses.field(default_factory=lambda: ["demo"])
    """tasks to solve, each as for python -m jkv.decode --task (default: demo)"""
    policies: list[Any] = dataclasses.field(default_factory=lambda: ["window", "random"])
    """policies to compare, by name; in YAML also mappings, as in {policy: rkv, name: rkv-half, options: {lam: 0.5}}
    (default: window random)"""
    budgets: list[int] = dataclasses.field(default_factory=lambda: [96, 128, 192])
    """KV slots of each row; every policy runs with each of these budgets (default: 96 128 192)"""
    full: bool = True
    """also run the full cache; an entry `full` among the policies may set its options"""
    register: list[str] | None = None
    dtype: Literal["float32", "bfloat16"] | None = None
    weights: Literal["int8"] | None = None
    kv: Literal["int8"] | None = None
    window: int | None = None
    ratio: float | None = None
    sinks: int | None = None
    pin_prompt: bool | None = None
    granularity: Granularity = "shared"
    limit: int | None = None
    samples: int = 1
    batch_size: int = 64
    max_new_tokens: int | None = None
    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 20
    seed: int = 0
    implementation: Literal["auto", "xla", "pallas"] = "auto"
    figure: str | None = None
    """policy that figure.png shows (default: dynts if it is among them, otherwise the first)"""
    overlay: str | None = None
    """published values to draw as hollow marks into the figure: paper, or a FILE.json like
    configs/figures/dynts.json"""
    dry_run: bool = False
    """only print what would run: the runs, their tokens at most and their memory; with --topology also whether each
    fits a TPU"""
    topology: str | None = None
    """with --dry-run: compile each program for this TPU, such as v5e:2x4"""
    mesh: str | None = None
    out: str | None = None
    """directory for results.csv, results.md, the figures and every run; the same command continues a sweep; must be
    given"""
    quiet: bool = False
    """print errors only: no progress, no tables"""

    def __post_init__(self):
        for name in ("models", "tasks", "policies", "budgets"):
            values = getattr(self, name)
            if not values:
                raise UserError("is empty", where=f"--{name}", mend="give at least one")
            if len({str(value) for value in values}) < len(values):
                raise UserError("names something twice", where=f"--{name}", mend="give each once")
        check_mesh_text(self.mesh)
        if self.out is None and not self.dry_run:
            raise UserError("a sweep needs a place for its results", where="--out", mend="give a directory")
        if self.topology is not None and not self.dry_run:
            raise UserError("is read by --dry-run only", where="--topology", mend="add it, or leave --topology out")
        if self.figure is not None and self.figure not in (labels := [name for name, _ in self._policies()]):
            raise UserError(f"no policy {self.figure!r} here", where="--figure", mend=f"one of {', '.join(labels)}")

    def _models(self) -> list[tuple[str, dict[str, Any]]]:
        """The name of each entry of ``models``, and what it sets."""
        return _entries(self.models, "model", _OF_A_MODEL)

    def _policies(self) -> list[tuple[str, dict[str, Any]]]:
        """The name of each entry of ``policies``, and what it sets."""
        return _entries(self.policies, "policy", _OF_A_POLICY)

    @property
    def drawn(self) -> str | None:
        """The name of the policy in figure.png: ``figure``, else dynts, else the first. None if there is only the full
        cache."""
        names = [name for name, own in self._policies() if own["policy"] != "full"]
        return self.figure or ("dynts" if "dynts" in names else next(iter(names), None))

    def cells(self) -> Iterator["Cell"]:
        """All runs, in order: for each model the full cache, then each policy with each budget; for each of these every
        task.

        An option that an entry of ``policies`` sets overrides that of an entry of ``models``, which overrides the
        sweep's.

        Raises:
            UserError: decode would refuse a run's options.
        """
        # The mesh of a dry run is another machine's: the planner reads it from the sweep.
        mesh = None if self.dry_run else self.mesh
        common = ("register", "dtype", "weights", "kv", "samples", "limit", "batch_size", "max_new_tokens",
                  "temperature", "top_p", "top_k", "seed", "implementation", "quiet")  # fmt: skip
        shared = {"mesh": mesh, **{name: getattr(self, name) for name in common}}
        of_a_budget = {name: getattr(self, name) for name in ("window", "ratio", "sinks", "pin_prompt", "granularity")}
        policies = self._policies()
        if self.full and not any(own["policy"] == "full" for _, own in policies):
            policies.insert(0, ("full", {"policy": "full"}))
        for model, its in self._models():
            for label, own in policies:
                for budget in [None] if own["policy"] == "full" else self.budgets:
                    settings = {**shared, **of_a_budget, **its, **own, "budget": budget}
                    # retain and ratio exclude each other, so both come from one entry: the policy's before the model's.
                    nearest = own if own.keys() & {"retain", "ratio"} else its
                    if nearest.keys() & {"retain", "ratio"}:
                        settings |= {name: nearest.get(name) for name in ("retain", "ratio")}
                    if budget is None:
                        settings = {name: value for name, value in settings.items() if name not in _OF_A_BUDGET}
                    for task in self.tasks:
                        yield Cell(model, label, budget, DecodeConfig(**settings, task=task))


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        model: the model's name in the sweep.
        label: the policy's name in the sweep.
        budget: KV slots of each row; None for the full cache.
        config: the run's.
    """

    model: str
    label: str
    budget: int | None
    config: DecodeConfig

    @property
    def name(self) -> str:
        """The run as messages call it: 'demo-llama, demo, window at 96'."""
        budget = "" if self.budget is None else f" at {self.budget}"
        return f"{self.model}, {self.config.task}, {self.label}{budget}"

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Add the cell's name to a UserError of the block."""
        try:
            yield
        except UserError as error:
            where = f"{self.name}: {error.where}" if error.where else self.name
            raise UserError(error.what, where=where, mend=error.mend) from None

    @property
    def directory(self) -> str:
        """The run's directory within the sweep's: 'runs/demo-llama/demo/window-96'."""
        plain = lambda text: "".join(c if c.isalnum() or c in "-_." else "-" for c in text).strip("-.") or "x"
        budget = "" if self.budget is None else f"-{self.budget}"
        return "/".join(("runs", plain(self.model), plain(self.config.task), plain(self.label) + budget))


def policy_entry(entry: Any) -> tuple[str, dict[str, Any]]:
    """Read an entry of ``policies``.

    Args:
        entry: a policy's name, or a mapping with at least ``policy``.

    Returns:
        Its name in the sweep, and what it sets, ``policy`` included.

    Raises:
        UserError: it is neither, or sets an unknown option or a wrong value.
    """
    return _entry(entry, "policy", _OF_A_POLICY)


def _entries(given: list[Any], kind: str, options: tuple[str, ...]) -> list[tuple[str, dict[str, Any]]]:
    """Read the entries of ``policies`` or ``models``. Raises UserError if two have the same name."""
    entries = [_entry(entry, kind, options) for entry in given]
    names = [name for name, _ in entries]
    for name in names:
        if names.count(name) > 1:
            mend = f"give each a name of its own, as in {_EXAMPLES[kind]}"
            raise UserError(f"two entries are called {name!r}", where=_PLURALS[kind], mend=mend)
    return entries


_PLURALS = {"policy": "--policies", "model": "--models"}
_EXAMPLES = {
    "policy": "{policy: rkv, name: rkv-half, options: {lam: 0.5}}",
    "model": "{model: DIR, name: R1-Llama, ratio: 0.3}",
}


def _entry(entry: Any, kind: str, options: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """Read one entry.

    Args:
        entry: a name, or a mapping with the name under ``kind``.
        kind: policy or model.
        options: what a mapping may set besides.
    """
    if isinstance(entry, str):
        return entry, {kind: entry}
    where = _PLURALS[kind].strip("-")
    if not isinstance(entry, dict) or not isinstance(entry.get(kind), str):
        raise UserError(f"{entry!r} is neither a {kind}'s name nor a mapping with one", where=where)
    entry = {str(key).replace("-", "_"): value for key, value in entry.items()}
    name = str(entry.pop("name", entry[kind]))
    kinds = get_type_hints(DecodeConfig)
    for key, value in entry.items():
        if key not in (kind, *options):
            known = ", ".join((kind, "name", *options))
            raise UserError(f"unknown key {key!r}", where=f"{where}: {name}", mend=f"names are {known}")
        try:
            pydantic.TypeAdapter(kinds[key], config={"allow_inf_nan": False}).validate_python(value, strict=True)
        except pydantic.ValidationError as error:
            raise UserError(f"{error.errors()[0]['msg']}, got {value!r}", where=f"{where}: {name}: {key}") from None
    return name, entry
