"""How long does a policy remember? A fact stated once, early in a long thought, is asked for after many evictions.

    python -m jkv.probe --out runs/probe

Prompt and thought are given (they are the demo's, see jkv/demo/probe.py) and read within the budget as decoding would
read them; the next token is right or wrong. Written: probe.csv, probe.md and the picture probe.png, .svg.
"""

import dataclasses
from typing import Any

from jkv import flags
from jkv.cli import run as run_command
from jkv.errors import UserError
from jkv.policies import Granularity
from jkv.run_config import HELP as RUN_HELP

# What the package can run without weights of a policy's own.
_POLICIES = (
    "random", "window", "streaming", "sepllm", "h2o", "snapkv", "rkv", "tova", "knorm", "keydiff",
    "expected_attention", "lazy", "raas", "triattention", "vase", "gkv",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ProbeConfig:
    """Which policies, in what budget, on how many probes."""

    model: str = "demo-llama"
    policies: list[Any] = dataclasses.field(default_factory=lambda: list(_POLICIES))
    register: list[str] | None = None
    budget: int = 64
    retain: int = 60
    window: int | None = 8
    sinks: int | None = None
    pin_prompt: bool = False
    granularity: Granularity = "shared"
    probes: int = 50
    seed: int = 0
    out: str | None = None

    def __post_init__(self):
        if self.probes < 1:
            raise UserError(f"{self.probes} is below 1", where="--probes", mend="give 1 or more")
        if self.out is None:
            raise UserError("the table and the picture need a place", where="--out", mend="give a directory")


HELP = {
    **{name: RUN_HELP[name] for name in (f.name for f in dataclasses.fields(ProbeConfig)) if name in RUN_HELP},
    "model": "demo-llama or demo-qwen, or another that knows their words",
    "policies": "names; in YAML also mappings, as in {policy: rkv, name: rkv-half, options: {lam: 0.5}}",
    "probes": "for each number of variables, 2 to 6",
    "out": "directory for probe.csv, probe.md, probe.png and probe.svg",
}


def parse(argv: list[str] | None) -> ProbeConfig:
    """Flags, and the YAML file they name, to a config. Raises UserError."""
    return flags.parse(ProbeConfig, argv, prog="python -m jkv.probe", description=__doc__, help=HELP)


def main(argv: list[str] | None = None) -> None:
    """Parse, then call one function."""
    config = parse(argv)
    from jkv.demo.recall import run_probe

    run_probe(config)


if __name__ == "__main__":
    run_command(main)
