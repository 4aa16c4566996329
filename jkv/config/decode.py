"""The configuration of ``python -m jkv.decode``: every flag, its default and its meaning; YAML uses the same names."""

import dataclasses
from typing import Any, Literal

from jkv.distributed.choose_mesh import AUTO
from jkv.distributed.mesh import parse_mesh
from jkv.errors import UserError
from jkv.policies import Granularity, Policy, Retention
from jkv.policies.options import make_policy, run_policy_file
from jkv.policies.retention import retain_by_ratio

DEMO_BUDGET = 128
# New tokens a completion at most, unless --max-new-tokens says so: the demo's, and the published figure's.
DEMO_NEW_TOKENS, NEW_TOKENS = 320, 16384
# Scores and positions meet in float32, which counts exactly to here.
LONGEST = 2**24


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """One run: a model, a policy in a budget, a task. A field's metadata is its help text."""

    model: str = "demo-llama"
    """demo-llama, demo-qwen, a Hugging Face or converted directory, or a hub id"""
    dtype: Literal["float32", "bfloat16"] | None = None
    """of weights, activations and KV buffer (default: float32 on CPU, bfloat16 elsewhere)"""
    weights: Literal["int8"] | None = None
    """int8: matrices as 8-bit integers with a scale a channel (default: of --dtype)"""
    kv: Literal["int8"] | None = None
    """int8: keys and values as 8-bit integers with a scale a slot and head (default: of --dtype)"""
    policy: str = "dynts"
    """which tokens stay: dynts, expected_attention, full, gkv, h2o, keydiff, knorm, lazy, raas, random, rkv, sepllm,
    snapkv, streaming, tova, triattention, trimkv, vase, window"""
    budget: int | None = None
    """KV slots a row owns (demo models: 128 unless given; full: not needed)"""
    window: int | None = None
    """newest tokens, never evicted (default: an eighth of the budget; h2o: half of what is kept)"""
    ratio: float | None = None
    """after an eviction, window + floor(ratio * (budget - window)) slots stay"""
    retain: int | None = None
    """slots that stay after an eviction; budget - 1: one out, one in (default: seven eighths)"""
    sinks: int | None = None
    """oldest tokens, never evicted (default: the policy's own, 4 for streaming and vase)"""
    pin_prompt: bool | None = None
    """never evict the prompt (default: the policy's own, on for dynts, random and raas)"""
    granularity: Granularity = "shared"
    """one keep set a row, or one a layer and KV head"""
    options: dict[str, Any] | None = None
    """the policy's own options, as in --options lam=0.5 queries=16 (docs/policies.md lists them)"""
    register: list[str] | None = None
    """Python files that register policies of your own"""
    predictor: str | None = None
    """weights that a policy needs: FILE.safetensors or its directory (default: those beside the model)"""
    long_prompts: Literal["refuse", "evict"] = "refuse"
    """a prompt longer than the budget is refused, or read in pieces, evicting by the policy"""
    task: str = "demo"
    """demo, aime24, aime25, amc23, gpqa_d, gaokao2023en, math500, FILE.jsonl with rows {id, prompt | messages |
    prompt_ids, answer, grading}, or the YAML of a benchmark of your own (jkv/tasks/benchmark.py)"""
    limit: int | None = None
    """problems at most (default: all; demo: 64)"""
    samples: int = 1
    """completions a problem"""
    batch_size: int = 16
    """rows decoded together"""
    max_new_tokens: int | None = None
    """new tokens a completion at most (default: demo 320, else 16384)"""
    temperature: float = 0.6
    """0 is greedy"""
    top_p: float = 0.95
    """nucleus mass, cut before top-k; 1 switches it off"""
    top_k: int = 20
    """tokens at most; 0 switches it off"""
    seed: int = 0
    """of all random draws"""
    ignore_eos: bool = False
    """always draw max-new-tokens"""
    implementation: Literal["auto", "xla", "pallas"] = "auto"
    """of attention and eviction; one asked for by name runs or raises"""
    mesh: str | None = None
    """devices to share the work, as data=ROWS,model=HEADS; auto chooses (default: one device)"""
    out: str | None = None
    """directory for samples.jsonl, summary.json, trace.jsonl; rerun the same command to continue"""
    trace: bool = False
    """write trace.jsonl, one line an eviction, for python -m jkv.view"""
    quiet: bool = False
    """no progress and no sample, only errors"""

    def __post_init__(self):
        for name, least in (("samples", 1), ("batch_size", 1), ("temperature", 0), ("top_k", 0)):
            _at_least(name, getattr(self, name), least)
        for name, least in (("budget", 1), ("limit", 1), ("max_new_tokens", 1), ("window", 0), ("sinks", 0)):
            if getattr(self, name) is not None:
                _at_least(name, getattr(self, name), least)
        for name in ("budget", "max_new_tokens", "batch_size", "samples", "top_k"):
            value = getattr(self, name)
            if value is not None and value > LONGEST:
                raise UserError(f"{value} is above {LONGEST}", where="--" + name.replace("_", "-"), mend="give less")
        for name in ("model", "policy", "task", "out"):
            if getattr(self, name) == "":
                raise UserError("is empty", where=f"--{name}", mend="give a value, or leave the flag out")
        if not 0 < self.top_p <= 1:
            raise UserError(f"{self.top_p} is outside (0, 1]", where="--top-p", mend="1 switches it off")
        if self.ratio is not None and self.retain is not None:
            raise UserError("--ratio and --retain both say how much stays", where="--retain", mend="give one of them")
        if self.ratio is not None and not 0 <= self.ratio < 1:
            raise UserError(f"{self.ratio} is outside [0, 1)", where="--ratio", mend="0.3 keeps 30 % beyond the window")
        check_mesh_text(self.mesh)

    @property
    def new_tokens(self) -> int:
        """New tokens a completion at most."""
        return self.max_new_tokens or (DEMO_NEW_TOKENS if self.task == "demo" else NEW_TOKENS)

    def make_policy(self) -> Policy:
        """The policy with its options, after running the files that register policies. Not yet bound to a model.

        Raises UserError for a policy, option or file that isn't there, and for a predictor that nothing would read.
        """
        for file in self.register or ():
            run_policy_file(file)
        policy = make_policy(self.policy, self.options or {})
        if self.predictor is not None and not policy.takes_predictor:
            raise UserError(f"policy {self.policy} takes no predictor", where="--predictor", mend="leave it out")
        return policy

    def retention(self, policy: Policy, *, longest: int) -> Retention:
        """Resolve the budget words. ``longest``: tokens of the longest sequence allowed (the buffer of policy full).

        Defaults: an eighth of the budget is evicted at a time, and the newest eighth is never evicted (h2o: half of
        what is kept).
        """
        if not policy.evicts:
            budget = self.budget or longest
            return Retention(budget, budget, granularity=self.granularity)
        budget = self.budget
        if budget is None:
            if not self.model.startswith("demo-"):
                raise UserError(
                    f"policy {self.policy} needs a budget", where="--budget", mend="give the number of KV slots"
                )
            budget = DEMO_BUDGET
        retain = self.retain
        if retain is None and self.ratio is None:
            retain = budget - max(1, budget // 8)
        window = self.window
        if window is None:
            window = policy.default_window(budget, retain=retain, ratio=self.ratio)
        sinks = policy.sinks if self.sinks is None else self.sinks
        pin = policy.pin_prompt if self.pin_prompt is None else self.pin_prompt
        if self.ratio is not None:
            retain = retain_by_ratio(budget, window, self.ratio)
        assert retain is not None
        if retain >= budget:
            raise UserError(
                f"retain {retain} leaves nothing to evict from a budget of {budget}",
                where="--retain" if self.retain is not None else "--window",
                mend=f"keep at most {budget - 1}",
            )
        long = self.long_prompts == "evict"
        return Retention(budget, retain, window, sinks, pin, self.granularity, long)


def check_mesh_text(mesh: str | None) -> None:
    """Raise UserError if ``--mesh`` is neither auto nor sizes."""
    if mesh is not None and mesh != AUTO:
        parse_mesh(mesh)


def _at_least(name: str, value: int | float, least: int) -> None:
    if value < least:
        raise UserError(f"{value} is below {least}", where="--" + name.replace("_", "-"), mend=f"give {least} or more")
