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
# Largest number of new tokens in a completion, unless --max-new-tokens is given: for the demo, and for other tasks, as
# in DynTS's figure.
DEMO_NEW_TOKENS, NEW_TOKENS = 320, 16384
# Policies turn positions into float32 scores, and float32 counts exactly up to here.
LONGEST = 2**24


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """One run: a model, a policy with a budget, a task, and how to sample."""

    model: str = "demo-llama"
    """model to decode with: demo-llama, demo-qwen, a Hugging Face or converted directory, or a hub id"""
    dtype: Literal["float32", "bfloat16"] | None = None
    """data type of weights, activations and KV buffer (default: float32 on CPU, bfloat16 elsewhere)"""
    weights: Literal["int8"] | None = None
    """int8 stores the weight matrices as 8-bit integers with a scale for each channel (default: --dtype)"""
    kv: Literal["int8"] | None = None
    """int8 stores keys and values as 8-bit integers with a scale for each slot and head (default: --dtype)"""
    policy: str = "dynts"
    """policy that chooses which tokens are evicted: dynts, expected_attention, full, gkv, h2o, keydiff, knorm, lazy,
    raas, random, rkv, sepllm, snapkv, streaming, tova, triattention, trimkv, vase, window"""
    budget: int | None = None
    """KV slots of each row (default: 128 for the demo models; policy full needs none)"""
    window: int | None = None
    """newest tokens that are never evicted (default: an eighth of the budget; h2o: half of the slots that stay)"""
    ratio: float | None = None
    """instead of --retain: after an eviction, window + floor(ratio * (budget - window)) slots stay"""
    retain: int | None = None
    """slots that stay after an eviction; with budget - 1 each new token replaces one (default: seven eighths of the
    budget)"""
    sinks: int | None = None
    """oldest tokens that are never evicted (default: the policy's own, 4 for streaming and vase, otherwise 0)"""
    pin_prompt: bool | None = None
    """never evict the prompt's tokens (default: the policy's own, on for dynts, random and raas)"""
    granularity: Granularity = "shared"
    """shared keeps the same tokens in all layers and KV heads of a row; head chooses them for each layer and KV head"""
    options: dict[str, Any] | None = None
    """options of the policy, as in --options lam=0.5 queries=16; docs/policies.md lists them"""
    register: list[str] | None = None
    """Python files that register policies of your own"""
    predictor: str | None = None
    """weights that a policy needs: FILE.safetensors or its directory (default: the model's directory)"""
    long_prompts: Literal["refuse", "evict"] = "refuse"
    """refuse a prompt that is longer than the budget, or read it in chunks and evict by the policy in between"""
    task: str = "demo"
    """problems to solve: demo, aime24, aime25, amc23, gpqa_d, gaokao2023en, math500, FILE.jsonl with rows {id, prompt |
    messages | prompt_ids, answer, grading}, or the YAML file of a benchmark of your own (jkv/tasks/benchmark.py)"""
    limit: int | None = None
    """largest number of problems (default: 64 for the demo, otherwise all)"""
    samples: int = 1
    """completions drawn for each problem"""
    batch_size: int = 16
    """rows decoded together"""
    max_new_tokens: int | None = None
    """largest number of new tokens in a completion (default: 320 for the demo, otherwise 16384)"""
    temperature: float = 0.6
    """sampling temperature; 0 always takes the likeliest token"""
    top_p: float = 0.95
    """draw from the likeliest tokens whose probabilities add up to this, applied before top-k; 1 switches it off"""
    top_k: int = 20
    """draw from this many likeliest tokens only; 0 switches it off"""
    seed: int = 0
    """seed of all random draws"""
    ignore_eos: bool = False
    """don't stop at an end-of-sequence token: every completion has max-new-tokens"""
    implementation: Literal["auto", "xla", "pallas"] = "auto"
    """implementation of attention and eviction; auto takes what suits the hardware, another name runs or is an error"""
    mesh: str | None = None
    """devices that share the work, as data=ROWS,model=HEADS; auto chooses the sizes (default: one device)"""
    out: str | None = None
    """directory for samples.jsonl, summary.json and trace.jsonl; the same command continues a run (default: nothing is
    kept)"""
    trace: bool = False
    """write trace.jsonl, a line for each eviction, which python -m jkv.view shows"""
    quiet: bool = False
    """print errors only: no progress, no completion, no table"""

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
        """Largest number of new tokens in a completion, with the default filled in."""
        return self.max_new_tokens or (DEMO_NEW_TOKENS if self.task == "demo" else NEW_TOKENS)

    def make_policy(self) -> Policy:
        """The policy with its options, not yet bound to a model. Runs the files of ``--register`` first.

        Raises:
            UserError: there is no such policy, option or file, or the policy takes no ``--predictor``.
        """
        for file in self.register or ():
            run_policy_file(file)
        policy = make_policy(self.policy, self.options or {})
        if self.predictor is not None and not policy.takes_predictor:
            raise UserError(f"policy {self.policy} takes no predictor", where="--predictor", mend="leave it out")
        return policy

    def retention(self, policy: Policy, *, longest: int) -> Retention:
        """Budget, retain, window and sinks, with the defaults filled in.

        An eighth of the budget is evicted at a time, and the newest eighth is never evicted (h2o: half of the slots
        that stay), unless the config says otherwise.

        Args:
            policy: may be bound to a model or not.
            longest: tokens of the longest possible sequence. It is the budget of policy full if none is given.

        Raises:
            UserError: the budget is missing, or the numbers don't fit each other.
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
    """Raise UserError if the value of ``--mesh`` is neither None nor auto nor sizes such as data=1,model=8."""
    if mesh is not None and mesh != AUTO:
        parse_mesh(mesh)


def _at_least(name: str, value: int | float, least: int) -> None:
    if value < least:
        raise UserError(f"{value} is below {least}", where="--" + name.replace("_", "-"), mend=f"give {least} or more")
