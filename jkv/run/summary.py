"""The contents of summary.json: what a run's samples and times add up to."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jkv.config.decode import DecodeConfig
from jkv.policies import Policy, Retention
from jkv.report.accuracy import accuracy

Summary = dict[str, Any]
"""JSON values, with the keys of `summarise`."""


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a summary says besides samples and times.

    Attributes:
        kv_bytes: bytes of the KV buffer, over all rows and hosts.
        kv_bytes_full: bytes that a buffer of the same data type would take if nothing were evicted.
        device: the kind of device, as JAX names it.
        mesh: its sizes as ``--mesh`` takes them; None without one.
    """

    kv_bytes: int
    kv_bytes_full: int
    device: str
    mesh: str | None


def summarise(
    config: DecodeConfig,
    policy: Policy,
    rule: Retention,
    samples: Sequence[dict[str, Any]],
    timings: dict[str, float],
    facts: Facts,
    recompiles: int,
) -> Summary:
    """The summary of a finished run.

    Args:
        config: what was run.
        policy: bound to the model.
        rule: the budget, with all defaults filled in.
        samples: rows of samples.jsonl, at least one, in any order.
        timings: seconds (``wall``, ``compile``, ``decode``) and decode steps (``steps``) over all sessions.
        facts: what is known besides.
        recompiles: how often the decode program was compiled again.

    Raises:
        RuntimeError: sequences outgrew the budget and no eviction was counted.
    """
    # Sorted, so that the last digit of a mean doesn't depend on which sample finished first.
    rows = sorted(samples, key=lambda row: (row["id"], row["sample"]))
    tokens = sum(len(row["token_ids"]) for row in rows)
    evictions = sum(row["evictions"] for row in rows)
    outgrown = any(r["prompt_tokens"] + len(r["token_ids"]) - 1 > rule.budget for r in rows)
    if policy.evicts and outgrown and not evictions:
        raise RuntimeError("sequences outgrew the budget and no eviction was counted: the figures can't be trusted")
    return {
        "model": config.model,
        "policy": policy.name,
        "budget": rule.budget,
        "retain": rule.retain,
        "window": rule.window,
        "sinks": rule.sinks,
        "pin_prompt": rule.pin_prompt,
        "granularity": rule.granularity,
        "options": dataclasses.asdict(policy) if dataclasses.is_dataclass(policy) else {},
        "batch_size": config.batch_size,
        "samples": len(rows),
        "ungraded": sum("ungraded" in row for row in rows),
        **accuracy(rows),
        "truncation_rate": float(np.mean([row["finish"] == "length" for row in rows])),
        "mean_tokens": tokens / len(rows),
        "tokens": tokens,
        "wall_s": timings["wall"],
        "compile_s": timings["compile"],
        "tps": tokens / timings["wall"],
        "tps_paper": config.batch_size * timings["steps"] / timings["decode"] if timings["decode"] else None,
        "evictions": evictions,
        "peak_slots": max(row["peak_slots"] for row in rows),
        "mean_slots": float(np.mean([row["mean_slots"] for row in rows])),
        "kv_bytes": facts.kv_bytes,
        "kv_bytes_full": facts.kv_bytes_full,
        "recompiles": recompiles,
        "device": facts.device,
        "mesh": facts.mesh,
        "weights": config.weights,
        "kv": config.kv,
    }
