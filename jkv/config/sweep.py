"""The configuration of ``python -m jkv.sweep``: lists of what to cross, and what all runs have in common."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any, Literal, get_type_hints

import pydantic

from jkv.config.decode import DecodeConfig, check_mesh_text
from jkv.errors import UserError
from jkv.policies import Granularity

# What an entry of ``policies`` may set for itself beside its name, and one of ``models``.
_OF_A_POLICY = (
    "options", "predictor", "window", "sinks", "pin_prompt", "granularity", "ratio", "retain", "long_prompts",
    "batch_size",
)  # fmt: skip
_OF_A_MODEL = ("window", "sinks", "ratio", "retain", "batch_size", "dtype", "weights", "kv")
# The words that the full cache has no use for.
_OF_A_BUDGET = ("window", "ratio", "retain", "sinks", "pin_prompt", "granularity", "long_prompts")


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """Models x (the full cache, and policies x budgets) x tasks. What is not a list is common to all runs."""

    models: list[Any] = dataclasses.field(default_factory=lambda: ["demo-llama"])
    """demo-llama, demo-qwen, directories, hub ids; in YAML also mappings, as in {model: DIR, name: R1, ratio: 0.3}"""
    tasks: list[str] = dataclasses.field(default_factory=lambda: ["demo"])
    """demo, benchmarks as for jkv.decode --task, FILE.jsonl"""
    policies: list[Any] = dataclasses.field(default_factory=lambda: ["window", "random"])
    """names; in YAML also mappings, as in {policy: rkv, name: rkv-half, options: {lam: 0.5}}"""
    budgets: list[int] = dataclasses.field(default_factory=lambda: [96, 128, 192])
    """KV slots a row owns"""
    full: bool = True
    """also run the full cache, as policies' `full` entry says or like the others"""
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
    """the policy that figure.png shows (default: dynts if it is among them, else the first)"""
    overlay: str | None = None
    """hollow marks in the figure: paper, or a FILE.json like configs/figures/dynts.json"""
    dry_run: bool = False
    """only say what would run: cells, tokens at most, memory; with --topology whether each fits a TPU"""
    topology: str | None = None
    """with --dry-run: compile each program for this TPU, as in v5e:2x4"""
    mesh: str | None = None
    out: str | None = None
    """directory for results.csv, results.md, the figures and every run; the same command continues"""
    quiet: bool = False
    """no progress, only errors"""

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
        return _entries(self.models, "model", _OF_A_MODEL)

    def _policies(self) -> list[tuple[str, dict[str, Any]]]:
        return _entries(self.policies, "policy", _OF_A_POLICY)

    @property
    def drawn(self) -> str | None:
        """What the figure's policy is called: ``figure``, else dynts, else the first. None: only the full cache."""
        names = [name for name, own in self._policies() if own["policy"] != "full"]
        return self.figure or ("dynts" if "dynts" in names else next(iter(names), None))

    def cells(self) -> Iterator["Cell"]:
        """All runs: of each model the full cache, then each policy at each budget; of each of these every task.

        What an entry of ``policies`` sets goes before what one of ``models`` sets, that before what is common.
        """
        # A dry run compiles for the mesh of another machine.
        mesh = None if self.dry_run else self.mesh
        common = ("register", "dtype", "weights", "kv", "samples", "limit", "batch_size", "max_new_tokens",
                  "temperature", "top_p", "top_k", "seed", "implementation", "quiet")  # fmt: skip
        shared = {"mesh": mesh, **{name: getattr(self, name) for name in common}}
        words = {name: getattr(self, name) for name in ("window", "ratio", "sinks", "pin_prompt", "granularity")}
        policies = self._policies()
        if self.full and not any(own["policy"] == "full" for _, own in policies):
            policies.insert(0, ("full", {"policy": "full"}))
        for model, its in self._models():
            for label, own in policies:
                for budget in [None] if own["policy"] == "full" else self.budgets:
                    settings = {**shared, **words, **its, **own, "budget": budget}
                    # One entry says how much stays: the nearest.
                    nearest = own if own.keys() & {"retain", "ratio"} else its
                    if nearest.keys() & {"retain", "ratio"}:
                        settings |= {name: nearest.get(name) for name in ("retain", "ratio")}
                    if budget is None:
                        settings = {name: value for name, value in settings.items() if name not in _OF_A_BUDGET}
                    for task in self.tasks:
                        yield Cell(model, label, budget, DecodeConfig(**settings, task=task))


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a sweep: what its model and policy are called there, its budget (None: the full cache), its config."""

    model: str
    label: str
    budget: int | None
    config: DecodeConfig

    @property
    def name(self) -> str:
        """For people."""
        budget = "" if self.budget is None else f" at {self.budget}"
        return f"{self.model}, {self.config.task}, {self.label}{budget}"

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Adds the cell's name to a UserError of the block."""
        try:
            yield
        except UserError as error:
            where = f"{self.name}: {error.where}" if error.where else self.name
            raise UserError(error.what, where=where, mend=error.mend) from None

    @property
    def directory(self) -> str:
        """Where the run lives within the sweep's directory."""
        plain = lambda text: "".join(c if c.isalnum() or c in "-_." else "-" for c in text).strip("-.") or "x"
        budget = "" if self.budget is None else f"-{self.budget}"
        return "/".join(("runs", plain(self.model), plain(self.config.task), plain(self.label) + budget))


def policy_entry(entry: Any) -> tuple[str, dict[str, Any]]:
    """An entry of ``policies``: what it is called, and what it sets. Raises UserError."""
    return _entry(entry, "policy", _OF_A_POLICY)


def _entries(given: list[Any], kind: str, words: tuple[str, ...]) -> list[tuple[str, dict[str, Any]]]:
    """Entries of ``policies`` or ``models`` with what each is called. Raises UserError if two are called the same."""
    entries = [_entry(entry, kind, words) for entry in given]
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


def _entry(entry: Any, kind: str, words: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """An entry: a name, or a mapping with the name under ``kind`` and what it sets for itself."""
    if isinstance(entry, str):
        return entry, {kind: entry}
    where = _PLURALS[kind].strip("-")
    if not isinstance(entry, dict) or not isinstance(entry.get(kind), str):
        raise UserError(f"{entry!r} is neither a {kind}'s name nor a mapping with one", where=where)
    entry = {str(key).replace("-", "_"): value for key, value in entry.items()}
    name = str(entry.pop("name", entry[kind]))
    kinds = get_type_hints(DecodeConfig)
    for key, value in entry.items():
        if key not in (kind, *words):
            known = ", ".join((kind, "name", *words))
            raise UserError(f"unknown key {key!r}", where=f"{where}: {name}", mend=f"names are {known}")
        try:
            pydantic.TypeAdapter(kinds[key], config={"allow_inf_nan": False}).validate_python(value, strict=True)
        except pydantic.ValidationError as error:
            raise UserError(f"{error.errors()[0]['msg']}, got {value!r}", where=f"{where}: {name}: {key}") from None
    return name, entry
