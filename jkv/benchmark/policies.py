"""What each policy costs: decode time beside that of the full cache, with the same buffer and the same occupied slots.

The rows of every contestant grow from ``retain`` to ``budget`` occupied slots, over and over: a policy's because it
evicts, the full cache's because this benchmark sets their lengths back. So the difference is the cost of what the
policy needs, of its scoring and of eviction. Machines drift, so the full cache is measured before and after every
contestant. What is reported is the median over turns of the ratio to the mean of the two.
"""

import dataclasses
import pathlib
import statistics
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console
from rich.progress import Progress as ProgressBar
from rich.table import Table

from jkv.engine.engine import Engine
from jkv.engine.events import Completion, Eviction, Progress, Request
from jkv.errors import UserError
from jkv.files.whole import write_json
from jkv.models import Decoder
from jkv.models.config import ModelConfig
from jkv.policies import Full, Policy, Retention, get_policy, policy_names
from jkv.policies.untrained import bind_untrained

if TYPE_CHECKING:
    from jkv.config.bench import BenchConfig


def compare_policies(config: "BenchConfig") -> dict[str, Any]:
    """Run the comparison and print its table.

    Args:
        config: the random model, the load, which policies (all that evict, unless given), and how many turns.

    Returns:
        The figures, which are also written to ``config.json`` if that names a file.

    Raises:
        UserError: there is no such policy, or the load is too short for an eviction.
    """
    model_config = ModelConfig(
        "llama", config.vocab, config.d_model, config.d_ff, config.layers, config.heads, config.kv_heads,
        config.d_model // config.heads, 1e4,
    )  # fmt: skip
    model = Decoder(model_config, rngs=nnx.Rngs(0))
    names = [name for name in policy_names() if get_policy(name).evicts]
    if config.only:
        names = ["window", *(name for name in dict.fromkeys(config.only) if name != "window")]
    budget, interval = config.budget, max(1, config.budget // 8)
    retain = budget - interval
    if retain < 2 or config.new_tokens < 2 * interval:
        raise UserError(
            f"{config.new_tokens} new tokens in a budget of {budget} hold no eviction", where="--new-tokens"
        )
    cycles = config.new_tokens // interval
    # The prompts fill all slots that an eviction keeps, so they can't be pinned.
    prompts = np.random.default_rng(0).integers(3, config.vocab, (config.batch_size, retain))
    full = _Contestant(model, Full(), Retention(budget, budget), (), prompts, interval)
    contestants = {}
    for name in names:
        policy, parameters = bind_untrained(get_policy(name)(), model_config)
        rule = Retention(budget, retain, min(interval, retain // 2), policy.sinks)
        contestants[name] = _Contestant(model, policy, rule, parameters, prompts, interval)
    ratios: dict[str, list[float]] = {name: [] for name in names}
    steps: list[float] = []
    with ProgressBar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("warm-up", total=(config.turns + 1) * len(names))
        for turn in range(config.turns + 1):
            before = full.seconds_a_step(cycles)
            for name, contestant in contestants.items():
                bar.update(task, description=f"{'compiling and warm-up' if turn == 0 else f'turn {turn}'}: {name}")
                own, after = contestant.seconds_a_step(cycles), full.seconds_a_step(cycles)
                if turn:
                    ratios[name].append(2 * own / (before + after))
                    steps.append(after)
                before = after
                bar.advance(task)
    figures = _figures(config, retain, ratios, statistics.median(steps))
    Console().print(_table(figures))
    if config.json:
        write_json(pathlib.Path(config.json), figures)
    return figures


class _Unchecked(Engine):
    """An Engine that takes requests longer than its buffer under policy full, since the rows are set back in time."""

    def check(self, request: Request, where: str = "") -> None:
        """Accept any request."""
        del request, where


class _Contestant:
    """An engine whose rows never end.

    Args:
        model: what all contestants decode with.
        policy: ready to run.
        rule: its budget, and what an eviction keeps.
        parameters: of the policy.
        prompts: token ids, [B, retain].
        interval: decode steps a device call: as many as there are from one eviction to the next.
    """

    def __init__(
        self, model: Decoder, policy: Policy, rule: Retention, parameters: Any, prompts: np.ndarray, interval: int
    ) -> None:
        self.engine = _Unchecked(
            model, policy=policy, rule=rule, batch_size=len(prompts), eos_ids=(), parameters=parameters,
            steps_per_call=interval,
        )  # fmt: skip
        requests = [Request(str(i), tuple(map(int, ids)), 1 << 30) for i, ids in enumerate(prompts)]
        self.calls: Iterator[Completion | Eviction | Progress] = self.engine.run(requests)
        self.evicts, self.retain = policy.evicts, prompts.shape[1]

    def seconds_a_step(self, calls: int) -> float:
        """Mean seconds a decode step, over ``calls`` device calls."""
        timings = self.engine.timings
        seconds, steps, evictions = timings.decode, timings.steps, self._evictions()
        for _ in range(calls):
            next(self.calls)
            if not self.evicts:
                state = self.engine.state
                length = jnp.full_like(state.cache.length, self.retain)
                self.engine.state = dataclasses.replace(state, cache=dataclasses.replace(state.cache, length=length))
        assert (self._evictions() - evictions >= calls - 1) == self.evicts
        return (timings.decode - seconds) / (timings.steps - steps)

    def _evictions(self) -> int:
        return int(self.engine.state.evictions[0])


def _figures(config: "BenchConfig", retain: int, ratios: dict[str, list[float]], full_step: float) -> dict[str, Any]:
    """What `compare_policies` returns. ratios: to the full cache's time, by policy and turn.  full_step: seconds."""
    typical = {name: statistics.median(values) for name, values in ratios.items()}
    rows = {
        name: {
            "ms_per_step": 1e3 * full_step * ratio,
            "tps_over_window": typical["window"] / ratio,
            "over_full": ratio - 1,
            "share_of_time": 1 - 1 / ratio,
            "ratios": ratios[name],
        }
        for name, ratio in typical.items()
    }
    return {
        "config": {name: getattr(config, name) for name in config.__dataclass_fields__},
        "retain": retain,
        "device": jax.devices()[0].device_kind,
        "full_ms_per_step": 1e3 * full_step,
        "policies": rows,
    }


def _table(figures: dict[str, Any]) -> Table:
    """The figures of `compare_policies` as a table, the cheapest policy first."""
    c = figures["config"]
    table = Table(
        title=f"Policies on {figures['device']}: batch {c['batch_size']}, budget {c['budget']}, retain "
        f"{figures['retain']}, medians of {c['turns']} turns"
    )
    headings = ("policy", "tokens/s over window's", "ms a step", "more than full", "time on eviction and scoring")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "policy" else "right")
    for name, row in sorted(figures["policies"].items(), key=lambda item: item[1]["over_full"]):
        table.add_row(
            name,
            f"{row['tps_over_window']:.2f}",
            f"{row['ms_per_step']:.1f}",
            f"{100 * row['over_full']:+.1f} %",
            f"{100 * max(row['share_of_time'], 0):.1f} %",
        )
    table.caption = f"full: the full cache at the same occupancy, {figures['full_ms_per_step']:.1f} ms a step"
    return table
