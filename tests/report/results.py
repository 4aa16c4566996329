"""Results of runs that never were."""

from typing import Any

from jkv.report.results import Result

SUMMARY: dict[str, Any] = {
    "model": "m", "policy": "window", "retain": 6, "window": 1, "sinks": 0, "pin_prompt": False,
    "granularity": "shared", "samples": 2, "ungraded": 0, "pass_at_1": 0.5, "pass_at_1_low": 0.25,
    "pass_at_1_high": 0.75, "pass_at_k": {"1": 0.5, "2": 0.6, "3": 1.0}, "maj_at_k": None, "maj_at_k_low": None,
    "maj_at_k_high": None, "truncation_rate": 0.125, "mean_tokens": 3.0, "tokens": 6, "wall_s": 2.0, "compile_s": 1.0,
    "tps": 1234.5, "tps_paper": None, "evictions": 4, "peak_slots": 8, "mean_slots": 7.0, "kv_bytes": 10,
    "kv_bytes_full": 20, "batch_size": 2, "recompiles": 0, "device": "cpu",
}  # fmt: skip


def result(
    label: str, budget: int | None, correct: dict[str, list[float]], *, model: str = "m", task: str = "t", **own: Any
) -> Result:
    """A run of ``label``; own: what its summary says otherwise."""
    return Result(model, label, budget, task, {**SUMMARY, **own}, correct)


def measured(model: str, label: str, budget: int | None, value: float, half: float, tps: float, **own: Any) -> Result:
    """A run with this Pass@1, so wide an interval to both sides, and these tokens a second."""
    words = {"pass_at_1": value, "pass_at_1_low": max(value - half, 0), "pass_at_1_high": min(value + half, 1)}
    return result(label, budget, {"x": [value]}, model=model, **{**words, "tps": tps, **own})
