"""``python -m jkv.bench``: jkv beside transformers' ``generate``, on this machine, in one run.

Same random weights, same prompts, greedy, no end of sequence. The contestants take turns (A B C A B C ...), because
machines drift; what counts is the median of the ratios within a turn. PyTorch is needed (``pip install -e '.[test]'``).

With ``--policies``: what each eviction policy costs, beside the full cache at the same buffer size and occupancy.
"""

import dataclasses

from jkv import flags
from jkv.cli import run as run_command
from jkv.errors import UserError


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """A random Llama and a load for it; the defaults are the comparison that the README quotes."""

    layers: int = 12
    d_model: int = 512
    heads: int = 8
    kv_heads: int = 4
    d_ff: int = 1376
    vocab: int = 4096
    batch_size: int = 8
    prompt_tokens: int = 64
    new_tokens: int = 1024
    budget: int = 256
    policy: str = "window"
    policies: bool = False
    only: list[str] | None = None
    turns: int = 5
    json: str | None = None

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and not isinstance(value, bool) and value < 1:
                raise UserError(f"{value} is below 1", where="--" + field.name.replace("_", "-"), mend="give 1 or more")


HELP = {
    "layers": "L", "d_model": "D", "heads": "N", "kv_heads": "K", "d_ff": "F", "vocab": "V",
    "batch_size": "prompts decoded together",
    "prompt_tokens": "tokens of each prompt",
    "new_tokens": "tokens each of them is continued by",
    "budget": "KV slots of jkv's budgeted contestant",
    "policy": "its eviction policy",
    "policies": "compare the cost of all policies instead; needs no PyTorch",
    "only": "with --policies: these, and window",
    "turns": "how often each contestant runs, after one warm-up",
    "json": "also write the figures to this file",
}  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """Parse, then call one function."""
    config = flags.parse(BenchConfig, argv, prog="python -m jkv.bench", description=__doc__, help=HELP)
    if config.policies:
        from jkv.benchmark.policies import compare_policies

        compare_policies(config)
    else:
        from jkv.benchmark.versus import versus

        versus(config)


if __name__ == "__main__":
    run_command(main)
