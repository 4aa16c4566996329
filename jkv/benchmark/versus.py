"""jkv beside transformers, with the full cache and with a budget, and each beside the time that reading weights takes.

Contestants take turns. What is reported is the median over turns of the ratio to transformers in the same turn.
"""

import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from jkv.engine.engine import Engine
from jkv.engine.events import Completion, Request
from jkv.errors import UserError
from jkv.files.whole import write_json
from jkv.load import load
from jkv.models import Decoder
from jkv.policies import Policy, Retention, get_policy
from jkv.policies.full import Full

if TYPE_CHECKING:
    from jkv.config.bench import BenchConfig


def versus(config: "BenchConfig") -> dict[str, Any]:
    """Run the comparison and print its table.

    Args:
        config: the random model, the load, and how many turns.

    Returns:
        The figures, which are also written to ``config.json`` if that names a file.

    Raises:
        UserError: PyTorch isn't installed, there is no such policy, or the prompts don't fit the budget.
    """
    console = Console()
    rng = np.random.default_rng(0)
    prompts = rng.integers(3, config.vocab, (config.batch_size, config.prompt_tokens))
    with tempfile.TemporaryDirectory() as directory:
        reference = _random_llama(config, pathlib.Path(directory))
        model = load(directory, "float32").model
    slots = config.prompt_tokens + config.new_tokens
    full = Retention(slots, slots)
    eighth = max(1, config.budget // 8)
    budgeted = Retention(config.budget, config.budget - eighth, window=eighth)
    contestants: dict[str, Callable[[], None]] = {
        "transformers, full cache": _transformers(reference, prompts, config.new_tokens),
        "jkv, full cache": _jkv(model, prompts, config, Full(), full),
        f"jkv, {config.policy}, budget {config.budget}": _jkv(
            model, prompts, config, get_policy(config.policy)(), budgeted
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    bandwidth: list[float] = []
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("warm-up", total=config.turns + 1)
        for turn in range(config.turns + 1):
            bandwidth.append(_read_bandwidth())
            for name, contestant in contestants.items():
                bar.update(task, description=f"{'warm-up' if turn == 0 else f'turn {turn}'}: {name}")
                started = time.perf_counter()
                contestant()
                if turn:
                    seconds[name].append(time.perf_counter() - started)
            bar.advance(task)
    figures = _figures(config, seconds, bandwidth, _weight_bytes(model))
    console.print(_table(figures))
    if config.json:
        write_json(pathlib.Path(config.json), figures)
    return figures


def _random_llama(config: "BenchConfig", directory: pathlib.Path) -> Any:
    """A transformers.LlamaForCausalLM with random weights, which are also saved to a directory for jkv to read."""
    try:
        import torch
        import transformers
    except ImportError:
        raise UserError("the comparison needs PyTorch", mend="pip install -e '.[test]'") from None
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    settings = transformers.LlamaConfig(
        vocab_size=config.vocab, hidden_size=config.d_model, intermediate_size=config.d_ff,
        num_hidden_layers=config.layers, num_attention_heads=config.heads, num_key_value_heads=config.kv_heads,
        max_position_embeddings=config.prompt_tokens + config.new_tokens + 1, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(settings).eval()
    model.save_pretrained(directory)
    return model


def _transformers(model: Any, prompts: np.ndarray, new_tokens: int) -> Callable[[], None]:
    """A function that continues all prompts with `generate` of a transformers model."""
    import torch

    ids = torch.from_numpy(prompts)

    def run() -> None:
        """One run, of as many tokens as it should have."""
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=new_tokens,
                max_new_tokens=new_tokens, pad_token_id=0,
            )  # fmt: skip
        assert out.shape[1] == prompts.shape[1] + new_tokens

    return run


def _jkv(
    model: Decoder, prompts: np.ndarray, config: "BenchConfig", policy: Policy, rule: Retention
) -> Callable[[], None]:
    """A function that continues all prompts with an Engine, which compiles in the first run."""
    engine = Engine(model, policy=policy, rule=rule, batch_size=len(prompts), eos_ids=())
    requests = [Request(str(i), tuple(map(int, ids)), config.new_tokens) for i, ids in enumerate(prompts)]

    def run() -> None:
        """One run, of as many tokens as it should have, with evictions if there should be some."""
        tokens = evictions = 0
        for event in engine.run(requests):
            if isinstance(event, Completion):
                tokens += len(event.token_ids)
                evictions += event.evictions
        assert tokens == len(requests) * config.new_tokens
        assert bool(evictions) == (policy.evicts and config.prompt_tokens + config.new_tokens > rule.budget)

    return run


def _weight_bytes(model: Decoder) -> int:
    """Bytes of weights that a step reads: all but the embedding (of that a row a token), unless it is the head, too."""
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model)))
    return total if model.config.tied_head else total - model.embed[...].nbytes


def _read_bandwidth(size: int = 1 << 28) -> float:
    """Bytes/s at which a plain sum of ``size`` bytes reads memory, the best of three times."""
    data = jnp.ones((size // 4,), jnp.float32)
    read = jax.jit(lambda x: x.reshape(64, -1).sum(axis=1))
    jax.block_until_ready(read(data))
    times = []
    for _ in range(3):
        started = time.perf_counter()
        jax.block_until_ready(read(data))
        times.append(time.perf_counter() - started)
    return size / min(times)


def _figures(
    config: "BenchConfig", seconds: dict[str, list[float]], bandwidth: list[float], weight_bytes: int
) -> dict[str, Any]:
    """What `versus` returns. seconds: of each contestant, by turn.  bandwidth: bytes/s, by turn.

    The floor is the time in which a step's weights can be read, attention left out.
    """
    tokens = config.batch_size * config.new_tokens
    base = next(iter(seconds))
    floor = weight_bytes / statistics.median(bandwidth)
    rows = {}
    for name, times in seconds.items():
        step = statistics.median(times) / config.new_tokens
        rows[name] = {
            "tps": tokens / statistics.median(times),
            "ratio": statistics.median(b / t for b, t in zip(seconds[base], times, strict=True)),
            "ms_per_step": step * 1e3,
            "times_the_floor": step / floor,
            "seconds": times,
        }
    return {
        "config": {name: getattr(config, name) for name in config.__dataclass_fields__},
        "device": jax.devices()[0].device_kind,
        "read_bandwidth_gb_s": statistics.median(bandwidth) / 1e9,
        "weight_bytes": weight_bytes,
        "floor_ms_per_step": floor * 1e3,
        "contestants": rows,
    }


def _table(figures: dict[str, Any]) -> Table:
    """The figures of `versus` as a table."""
    table = Table(title=f"tokens/s on {figures['device']}, medians of {figures['config']['turns']} turns")
    for heading in ("", "tokens/s", "x transformers", "ms a step", "x floor"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, row in figures["contestants"].items():
        table.add_row(
            name,
            f"{row['tps']:,.0f}",
            f"{row['ratio']:.2f}",
            f"{row['ms_per_step']:.1f}",
            f"{row['times_the_floor']:.1f}",
        )
    table.caption = (
        f"floor: {figures['weight_bytes'] / 1e6:.0f} MB of weights at {figures['read_bandwidth_gb_s']:.1f} GB/s "
        f"= {figures['floor_ms_per_step']:.1f} ms a step, with no attention at all"
    )
    return table
