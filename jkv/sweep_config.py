"""The configuration of ``python -m jkv.sweep``: lists of what to cross, and what all runs have in common."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal, get_type_hints

import pydantic

from jkv.errors import UserError
from jkv.policies import Granularity
from jkv.run_config import HELP as RUN_HELP
from jkv.run_config import DecodeConfig, check_words

# What an entry of ``policies`` may set for itself, beside its name.
_OF_A_POLICY = (
    "options", "predictor", "window", "sinks", "pin_prompt", "granularity", "ratio", "retain", "long_prompts",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """Models x tasks x (the full cache, and policies x budgets). What is not a list is common to all runs."""

    models: list[str] = dataclasses.field(default_factory=lambda: ["demo-llama"])
    tasks: list[str] = dataclasses.field(default_factory=lambda: ["demo"])
    policies: list[Any] = dataclasses.field(default_factory=lambda: ["window", "random"])
    budgets: list[int] = dataclasses.field(default_factory=lambda: [96, 128, 192])
    register: list[str] | None = None
    dtype: Literal["float32", "bfloat16"] | None = None
    weights: Literal["int8"] | None = None
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
    mesh: str | None = None
    out: str | None = None
    quiet: bool = False

    def __post_init__(self):
        for name in ("models", "tasks", "policies", "budgets"):
            values = getattr(self, name)
            if not values:
                raise UserError("is empty", where=f"--{name}", mend="give at least one")
            if len({str(value) for value in values}) < len(values):
                raise UserError("names something twice", where=f"--{name}", mend="give each once")
        if self.out is None:
            raise UserError("a sweep needs a place for its results", where="--out", mend="give a directory")
        check_words(self.mesh)

    def cells(self) -> Iterator["Cell"]:
        """All runs: for each model and task the full cache, then each policy at each budget."""
        entries = [policy_entry(entry) for entry in self.policies]
        labels = [label for label, _ in entries]
        for label in labels:
            if labels.count(label) > 1:
                mend = "give each a name of its own, as in {policy: rkv, name: rkv-half, options: {lam: 0.5}}"
                raise UserError(f"two entries are called {label!r}", where="--policies", mend=mend)
        common = ("register", "dtype", "weights", "samples", "limit", "batch_size", "max_new_tokens", "temperature",
                  "top_p", "top_k", "seed", "implementation", "mesh", "quiet")  # fmt: skip
        budget_words = ("window", "ratio", "sinks", "pin_prompt", "granularity")
        shared = {name: getattr(self, name) for name in common}
        words = {name: getattr(self, name) for name in budget_words}
        for model in self.models:
            for task in self.tasks:
                where = {**shared, "model": model, "task": task}
                yield Cell("full", None, DecodeConfig(**where, policy="full"))
                for label, own in entries:
                    for budget in self.budgets:
                        settings = {**where, **words, **own, "budget": budget}
                        if own.get("retain") is not None:
                            settings["ratio"] = None
                        yield Cell(label, budget, DecodeConfig(**settings))


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a sweep: what its policy is called there, its budget (None: the full cache), and its config."""

    label: str
    budget: int | None
    config: DecodeConfig

    @property
    def directory(self) -> str:
        """Where the run lives within the sweep's directory."""
        plain = lambda text: "".join(c if c.isalnum() or c in "-_." else "-" for c in text).strip("-.") or "x"
        budget = "" if self.budget is None else f"-{self.budget}"
        return "/".join(("runs", plain(self.config.model), plain(self.config.task), plain(self.label) + budget))


def policy_entry(entry: Any) -> tuple[str, dict[str, Any]]:
    """An entry of ``policies``: a name, or a mapping with ``policy`` and what it sets for itself."""
    if isinstance(entry, str):
        return entry, {"policy": entry}
    names = ", ".join(("policy", "name", *_OF_A_POLICY))
    if not isinstance(entry, dict) or not isinstance(entry.get("policy"), str):
        raise UserError(f"{entry!r} is neither a policy's name nor a mapping with one", where="policies")
    entry = {str(key).replace("-", "_"): value for key, value in entry.items()}
    label = entry.pop("name", entry["policy"])
    kinds = get_type_hints(DecodeConfig)
    for key, value in entry.items():
        if key not in ("policy", *_OF_A_POLICY):
            raise UserError(f"unknown key {key!r}", where=f"policies: {label}", mend=f"names are {names}")
        try:
            pydantic.TypeAdapter(kinds[key], config={"allow_inf_nan": False}).validate_python(value, strict=True)
        except pydantic.ValidationError as error:
            raise UserError(f"{error.errors()[0]['msg']}, got {value!r}", where=f"policies: {label}: {key}") from None
    return str(label), entry


HELP = {
    **{name: RUN_HELP[name] for name in (f.name for f in dataclasses.fields(SweepConfig)) if name in RUN_HELP},
    "models": "demo-llama, demo-qwen, directories, hub ids",
    "tasks": "demo, benchmarks as for jkv.decode --task, FILE.jsonl",
    "policies": "names; in YAML also mappings, as in {policy: rkv, name: rkv-half, options: {lam: 0.5}}",
    "budgets": "KV slots a row owns",
    "out": "directory for results.csv, results.md and every run; the same command continues",
    "quiet": "no progress, only errors",
}
