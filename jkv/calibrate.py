"""Measure a model's query statistics once, for policy triattention, and store them beside its weights.

The model completes a task's prompts with the full cache; the queries (before RoPE) of all those tokens are averaged.
Few problems are enough: every layer, head and frequency sees every token.
"""

import dataclasses
from typing import Literal

from jkv import flags
from jkv.cli import run as run_command
from jkv.errors import UserError


@dataclasses.dataclass(frozen=True)
class CalibrateConfig:
    """What to measure on."""

    model: str = "demo-llama"
    dtype: Literal["float32", "bfloat16"] | None = None
    task: str = "demo"
    limit: int = 32
    max_new_tokens: int = 2048
    batch_size: int = 16
    seed: int = 1
    out: str | None = None

    def __post_init__(self):
        for name in ("limit", "max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{getattr(self, name)} is below 1", where="--" + name.replace("_", "-"))


HELP = {
    "model": "demo-llama, demo-qwen, a Hugging Face or converted directory, or a hub id",
    "dtype": "of weights and activations (default: float32 on CPU, bfloat16 elsewhere)",
    "task": "whose prompts are completed: demo, or FILE.jsonl; not one you evaluate on",
    "limit": "problems at most",
    "max_new_tokens": "new tokens a completion at most",
    "batch_size": "rows decoded together",
    "seed": "of all random draws; of the demo's problems, too (0 are the ones it is evaluated on)",
    "out": "the file to write (default: query_statistics.safetensors beside the model)",
}


def main(argv: list[str] | None = None) -> None:
    """Parse, then call one function."""
    config = flags.parse(CalibrateConfig, argv, prog="python -m jkv.calibrate", description=__doc__, help=HELP)
    calibrate(config)


def calibrate(config: CalibrateConfig) -> None:
    """Decode, measure, write. Raises UserError for what a user can mend."""
    import pathlib

    import jax
    from safetensors.numpy import save_file

    from jkv.engine import Completion, Engine, Request
    from jkv.load import load
    from jkv.policies import Full, Retention
    from jkv.query_statistics import FILE, measure_query_statistics
    from jkv.sampling import make_sampler
    from jkv.show import Screen, busy
    from jkv.tasks import load_task

    dtype = config.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    with busy(f"loading {config.model}", quiet=False):
        loaded = load(config.model, dtype)
        problems = load_task(config.task, loaded, limit=config.limit, seed=config.seed)
    requests = [Request(p.id, p.prompt_ids, config.max_new_tokens) for p in problems]
    slots = max(len(r.prompt_ids) for r in requests) + config.max_new_tokens
    engine = Engine(
        loaded.model, policy=Full(), rule=Retention(slots, slots), batch_size=min(config.batch_size, len(requests)),
        sampler=make_sampler(0.6, 0.95, 20), eos_ids=loaded.config.eos_ids, seed=config.seed,
    )  # fmt: skip
    with busy(f"decoding {len(requests)} problems", quiet=False):
        sequences = [
            (*event.request.prompt_ids, *event.token_ids)
            for event in engine.run(requests)
            if isinstance(event, Completion)
        ]
    sequences.sort()  # the order of finishing must not decide the rounding
    with busy("measuring queries", quiet=False):
        statistics = measure_query_statistics(loaded.model, sequences)
    path = pathlib.Path(config.out).expanduser() if config.out else loaded.path / FILE
    try:
        save_file(statistics, path)
    except Exception as error:  # safetensors wraps what the system says
        raise UserError(f"can't be written ({error})", where=str(path), mend="give another place with --out") from None
    console = Screen(stderr=True, highlight=False)
    console.print(f"queries of {sum(map(len, sequences)):,} tokens measured: {path}", soft_wrap=True)


if __name__ == "__main__":
    run_command(main)
