"""Every policy against a plain Python oracle: what stays at each eviction, and the greedy tokens that follow."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jkv.engine.engine import Engine
from jkv.engine.events import Request
from jkv.load import load
from jkv.models.predictor import random_predictor
from jkv.policies import (
    GKV,
    H2O,
    RKV,
    TOVA,
    DynTS,
    ExpectedAttention,
    KeyDiff,
    KNorm,
    Lazy,
    Policy,
    RaaS,
    Random,
    Retention,
    SepLLM,
    SnapKV,
    Streaming,
    TriAttention,
    TrimKV,
    VaSE,
    Window,
)
from tests.support import oracle_memory, oracle_scores
from tests.support.oracle import NewestFirst, Oracle, Scorer, UniformDraws
from tests.support.tiny import FAMILY, QWEN3_G1, complete, prompts

SEED = 7
# In the first layer the same token twice has keys of the same norm and the same values, up to rounding: a tie that no
# rule decides. Of a large vocabulary few tokens come twice.
VOCABULARY = 20011
MODELS = {
    tiny.name: dataclasses.replace(tiny, vocabulary=VOCABULARY) for tiny in (FAMILY[0], FAMILY[2], QWEN3_G1, FAMILY[3])
}
LLAMA, QWEN2, QWEN3, YARN = MODELS
SEPARATORS = tuple(range(5, VOCABULARY, 6))
# Relative distance of two numbers that float32 can't be expected to tell apart after all that is done to them.
ROUNDING = 1e-5


@dataclasses.dataclass(frozen=True)
class Case:
    """A policy and its oracle, made anew for every row from the run's parameters and the row's random draws."""

    policy: Policy
    scorer: Callable[[Any, UniformDraws], Scorer]
    parameters: Callable[[Any], Any] = lambda config: ()
    sinks: int = 0
    pin_prompt: bool = False


def query_statistics(config: Any) -> dict[str, jnp.ndarray]:
    shape = config.num_hidden_layers, config.num_attention_heads, config.head_dim
    rng = np.random.default_rng(1)
    mean = rng.normal(size=shape)
    modulus = np.hypot(*np.split(mean, 2, axis=-1)) * rng.uniform(1, 2, (*shape[:2], shape[2] // 2))
    return {"mean": jnp.asarray(mean, jnp.float32), "modulus": jnp.asarray(modulus, jnp.float32)}


def gates(config: Any) -> list[dict[str, jnp.ndarray]]:
    rng, middle = np.random.default_rng(2), 24
    sizes = {
        "linear1.weight": (middle, config.hidden_size), "linear1.bias": (middle,),
        "linear2.weight": (config.num_key_value_heads, middle), "bias": (config.num_key_value_heads,),
    }  # fmt: skip
    draw = lambda shape: jnp.asarray(rng.normal(size=shape) * shape[-1] ** -0.5, jnp.float32)
    return [{name: draw(shape) for name, shape in sizes.items()} for _ in range(config.num_hidden_layers)]


def predictor(config: Any) -> Any:
    return random_predictor(config.hidden_size)


def dynts(keep: Any, *, pin_prompt: bool) -> Case:
    # think_end is filled in by the test: a token that is known to be generated.
    make = lambda parameters, draws: oracle_memory.DynTS(parameters, draws, keep)
    return Case(DynTS(keep=keep), make, predictor, pin_prompt=pin_prompt)


CASES = {
    "window": Case(Window(), lambda *_: NewestFirst()),
    "random-pinned": Case(Random(), lambda _, draws: draws, pin_prompt=True),
    "streaming": Case(Streaming(), lambda *_: NewestFirst(), sinks=4),
    "random": Case(Random(), lambda _, draws: draws),
    "sepllm": Case(SepLLM(SEPARATORS), lambda *_: oracle_scores.SepLLM(SEPARATORS)),
    "h2o": Case(H2O(), lambda *_: oracle_memory.H2O()),
    "snapkv": Case(SnapKV(), lambda *_: oracle_scores.SnapKV()),
    "snapkv-mean-avg": Case(
        SnapKV(16, "mean", "avg", 5), lambda *_: oracle_scores.SnapKV(queries=16, group="mean", pool="avg", width=5)
    ),
    "rkv": Case(RKV(), lambda *_: oracle_scores.RKV()),
    "rkv-.5": Case(RKV(0.5), lambda *_: oracle_scores.RKV(0.5)),
    "tova": Case(TOVA(), lambda *_: oracle_scores.TOVA()),
    "knorm": Case(KNorm(), lambda *_: oracle_scores.KNorm()),
    "keydiff": Case(KeyDiff(), lambda *_: oracle_scores.KeyDiff()),
    "expected_attention": Case(ExpectedAttention(), lambda *_: oracle_scores.ExpectedAttention()),
    "expected_attention-16": Case(ExpectedAttention(16, 40, 2), lambda *_: oracle_scores.ExpectedAttention(16, 40, 2)),
    # Over so few slots no attention is below the default alpha for long.
    "lazy": Case(Lazy(0.03), lambda *_: oracle_memory.Lazy(0.03)),
    "lazy-.1": Case(Lazy(0.1), lambda *_: oracle_memory.Lazy(0.1)),
    "raas": Case(RaaS(), lambda *_: oracle_memory.RaaS()),
    "raas-pinned": Case(RaaS(), lambda *_: oracle_memory.RaaS(), pin_prompt=True),
    "triattention": Case(
        TriAttention(), lambda p, _: oracle_scores.TriAttention(np.asarray(p["mean"]), np.asarray(p["modulus"])),
        query_statistics,
    ),
    "vase-attnv": Case(VaSE("attnv"), lambda _, draws: oracle_scores.VaSEAttnV(draws)),
    "vase-attnv-sinks": Case(
        VaSE("attnv", queries=12), lambda _, draws: oracle_scores.VaSEAttnV(draws, 12), sinks=4
    ),
    "vase-dkv": Case(VaSE("dkv"), lambda _, draws: oracle_scores.VaSEDKV(draws), sinks=4),
    "gkv": Case(GKV(), lambda *_: oracle_memory.GKV()),
    "trimkv": Case(TrimKV(), lambda p, _: oracle_memory.TrimKV(p), gates),
    "dynts": dynts("top", pin_prompt=False),
    "dynts-pinned": dynts("top", pin_prompt=True),
    "dynts-random": dynts("random", pin_prompt=False),
    "dynts-random-pinned": dynts("random", pin_prompt=True),
    "dynts-bottom": dynts("bottom", pin_prompt=False),
    "dynts-bottom-pinned": dynts("bottom", pin_prompt=True),
}  # fmt: skip
KINDS = {"bulk": 24, "one-out": 31}
# Of the plain run: what is drawn, attention remembered or of the last queries, a gate, a predictor; both granularities.
QUICK_PLACES = [list(CASES).index(name) for name in ("random-pinned", "snapkv", "lazy-.1", "raas", "trimkv", "dynts")]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A tiny model by name, as transformers' and as jkv's; each is made once."""
    made: dict[str, tuple[Any, Any]] = {}

    def get(name: str) -> tuple[Any, Any]:
        if name not in made:
            directory = tmp_path_factory.mktemp(name)
            made[name] = MODELS[name].save(directory), load(directory, "float32").model
        return made[name]

    # Threads cost more than they give at this size.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield get
    torch.set_num_threads(threads)


def search(
    oracle: Oracle, make: Callable[[], Scorer], length: int, new_tokens: int
) -> tuple[tuple[int, ...], Any, Any]:
    """The first prompt at which no decision of the oracle's hangs on rounding; its tokens, and what stayed."""
    for seed in range(200):
        (prompt,) = prompts(length, seed=seed, vocabulary=VOCABULARY)
        tokens, kept, _ = oracle.run(prompt, new_tokens, make())
        if oracle.closest > ROUNDING:
            return prompt, tokens, kept
    raise AssertionError("no such prompt")


def compare(case: Case, rule: Retention, model: tuple[Any, Any], lengths: tuple[int, ...], new_tokens: int) -> None:
    """Engine and oracle side by side."""
    reference, ours = model
    parameters, policy = case.parameters(reference.config), case.policy
    words = rule.budget, rule.retain, rule.window, rule.sinks, rule.pin_prompt, rule.granularity == "head"
    oracle = Oracle(reference, *words)
    make = lambda i: case.scorer(parameters, UniformDraws(SEED, f"r{i}"))
    if isinstance(policy, DynTS):
        # Whatever ends thinking changes nothing before it is generated.
        _, tokens, _ = search(oracle, lambda: make(0), lengths[0], new_tokens)
        end = next(token for i, token in enumerate(tokens) if i > 25 and token not in tokens[:i])
        policy, unended = dataclasses.replace(policy, think_end=end), make
        make = lambda i: dataclasses.replace(unended(i), think_end=end)
    rows = [search(oracle, lambda i=i: make(i), length, new_tokens) for i, length in enumerate(lengths)]
    requests = [Request(f"r{i}", prompt, new_tokens) for i, (prompt, *_) in enumerate(rows)]
    engine = Engine(
        ours, policy=policy, rule=rule, batch_size=len(requests), eos_ids=(), seed=SEED, parameters=parameters
    )
    done, evictions = complete(engine, requests, trace=True)
    for request, (_, tokens, kept) in zip(requests, rows, strict=True):
        assert [eviction.kept for eviction in evictions[request.id]] == kept
        assert done[request.id].token_ids == tokens
        assert done[request.id].evictions == len(kept) >= 4
        assert done[request.id].peak_slots == rule.budget
    assert engine.traces["decode"] == 1
    if isinstance(policy, DynTS):
        assert any(end in tokens[: new_tokens // 2] for _, tokens, _ in rows)
    if not isinstance(policy, Window | Streaming):
        assert any(by_score(row, rule) for row in zip(lengths, rows, strict=True))


def by_score(row: tuple, rule: Retention) -> bool:
    """Whether an eviction kept anything but what is protected and the newest."""
    length, (_, _, kept) = row
    first = max(rule.sinks, length * rule.pin_prompt)
    heads = [held for held in kept for held in (itertools.chain(*held) if rule.granularity == "head" else [held])]
    return any(held != [*range(first), *range(held[-1] + 1 - rule.retain + first, held[-1] + 1)] for held in heads)


def grid() -> list:
    """All cases, granularities and models, evicting in bulk and one out in turn: each case meets both.

    The quick run has a few of the cases once; the slow one the others, and of every fourth case the other
    granularity on a second model.
    """
    names = dict.fromkeys(CASES, (LLAMA, QWEN2, QWEN3))
    for name in ("expected_attention", "triattention"):
        names[name] = (LLAMA, QWEN2, QWEN3, YARN)
    chosen = []
    for (place, case), (turn, granularity) in itertools.product(enumerate(CASES), enumerate(("shared", "head"))):
        for number, model in enumerate(names[case]):
            kind = list(KINDS)[(place // 2 + turn + number) % 2]
            once = turn == place % 2 and number == place % 3
            again = turn != place % 2 and number == (place + 1) % 3 and place % 4 == 0
            quick = once and place in QUICK_PLACES
            if once or again:
                chosen.append(pytest.param(case, granularity, kind, model, marks=() if quick else pytest.mark.slow))
    return chosen


@pytest.mark.parametrize(("case", "granularity", "kind", "model"), grid())
def test_kept_positions_and_tokens_equal_the_oracle(case: str, granularity: Any, kind: str, model: str, models):
    about = CASES[case]
    # A pinned prompt of 20 and a window of 4 leave nothing to choose of 24.
    retain = KINDS[kind] + 2 * (about.pin_prompt and kind == "bulk")
    rule = Retention(32, retain, 4, about.sinks, about.pin_prompt, granularity)
    compare(about, rule, models(model), (5, 20, 13), 80)


LONG = ["window", "streaming", "random", "knorm", "h2o", "snapkv", "rkv", "lazy", "raas", "gkv", "trimkv"]
# Of these, too, a few stand for all in the quick run.
QUICK = [("random", "head", "bulk"), ("h2o", "shared", "one-out"), ("rkv", "shared", "bulk")]


@pytest.mark.parametrize(
    ("case", "granularity", "kind"),
    [
        pytest.param(*setting, marks=() if setting in QUICK else pytest.mark.slow)
        for i, setting in enumerate(itertools.product(LONG, ("shared", "head"), KINDS))
        if setting in QUICK or i % 3 == 1
    ],
)
def test_prompts_longer_than_the_budget_equal_the_oracle(case: str, granularity: Any, kind: str, models):
    about = CASES[case]
    rule = Retention(32, KINDS[kind], 4, about.sinks, False, granularity, long_prompts=True)
    compare(about, rule, models(LLAMA), (70, 100), 30)
