"""What holds for every policy: exact slots, protection, no stray read, independent rows, nothing left behind."""

import collections
import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jkv.engine.chunked_prefill
import jkv.engine.prefill
import jkv.engine.step
from jkv import policies
from jkv.engine.engine import Engine
from jkv.engine.events import Completion, Eviction, Request
from jkv.engine.state import DecodeState, empty_state, request_key
from jkv.models import Decoder
from jkv.models.config import ModelConfig, YarnScaling
from jkv.policies import Retention
from jkv.policies.retention import Granularity
from tests.policies.zoo import EVICTING, ZOO
from tests.support.compilation import optimised
from tests.support.tiny import prompts

# Three query heads share a KV head; YaRN puts a factor on cos and sin.
YARN = YarnScaling(4.0, 32, attention_factor=1.14)
CONFIG = ModelConfig("qwen3", 97, 40, 72, 2, 6, 2, 12, 1e4, YARN, qk_norm=True, qkv_bias=True, eos_ids=(2,))
BUDGET, WINDOW, SEED = 40, 4, 3
RETAIN = {"bulk": 32, "one-out": BUDGET - 1}


def test_the_zoo_has_every_policy():
    assert {type(entry.policy) for entry in ZOO.values()} == set(policies._BUILT_IN)
    assert {name.split("-")[0] for name in ZOO} == {policy.name for policy in policies._BUILT_IN}


@dataclasses.dataclass(frozen=True)
class Case:
    """An entry of the zoo under one rule. long: prompts may be longer than the budget, and are not pinned."""

    name: str
    kind: str = "bulk"
    granularity: Granularity = "shared"
    long: bool = False

    def __str__(self) -> str:
        return "-".join([self.name, self.kind, self.granularity, *["long"] * self.long])

    @property
    def rule(self) -> Retention:
        pin = {"pin_prompt": False} if self.long else {}
        words = {"granularity": self.granularity, "long_prompts": self.long, **pin}
        return ZOO[self.name].rule(BUDGET, RETAIN[self.kind], window=WINDOW, **words)


@functools.cache
def model() -> Decoder:
    model = Decoder(CONFIG, rngs=nnx.Rngs(0))
    model.embed[...] = model.embed[...] * 30
    return model


@dataclasses.dataclass(frozen=True)
class Draw:
    """A plain draw: greedy completions of random weights soon go in circles, which hides differences."""

    def __call__(self, logits: jax.Array, keys: jax.Array) -> jax.Array:
        return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


ATTENTION_PASSES: dict[tuple["Case", int, bool], int] = {}


@functools.lru_cache(maxsize=8)  # every program maps memory, and a process may hold only so many maps
def compiled(case: Case, batch_size: int, as_users_do: bool = False) -> Engine:
    """One engine for all tests of a case: compiling is what takes the time. Use ``fresh``. Cases come one after another
    (see conftest.py). as_users_do: with all of XLA's optimisations."""
    entry, passes = ZOO[case.name], []
    engine = Engine(
        model(), policy=entry.policy, rule=case.rule, batch_size=batch_size, sampler=Draw(), eos_ids=(), seed=SEED,
        steps_per_call=8, parameters=entry.parameters(CONFIG),
    )  # fmt: skip
    attend = jkv.engine.step.decode_attention

    def counted(*arguments, weights: bool, **options):
        passes.extend([1] * weights)
        return attend(*arguments, weights=weights, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jkv.engine.step, "decode_attention", counted)
        with optimised(as_users_do):
            engine.compile()
    ATTENTION_PASSES[case, batch_size, as_users_do] = len(passes)
    return engine


def fresh(case: Case, batch_size: int = 3, *, as_users_do: bool = False) -> Engine:
    """The case's engine, its state as if it had just been made."""
    engine = compiled(case, batch_size, *[True] * as_users_do)
    engine.state = empty_state(engine.setup, batch_size, engine.dtype)
    return engine


# Plain runs see a policy for each thing that a policy can ask for, and every kind of rule; slow runs see every policy.
OTHERWISE = {
    Case("snapkv-16-mean-avg", "one-out"), Case("random", "one-out", "head"), Case("gkv", "bulk", "head"),
}  # fmt: skip
# One of each kind of need, for what depends on the kind more than on the policy.
KINDS = OTHERWISE | {Case(name) for name in ("dynts", "h2o", "keydiff", "window")}
PLAIN = KINDS | {Case(name) for name in ("sepllm", "trimkv", "vase")}
LONG_PLAIN = {Case("h2o", long=True), Case("snapkv", long=True)}


EVERY_RULE = [("bulk", "shared"), ("bulk", "head"), ("one-out", "shared"), ("one-out", "head")]
SOME_RULES = [EVERY_RULE[0], EVERY_RULE[3]]


def cases(
    plain: set[Case], rules: Sequence[tuple[str, Granularity]] = SOME_RULES, *, long: bool = False, each: int = 2
) -> list:
    """``plain``, and in slow runs every ``each``-th evicting entry, under one of the rules in turn."""
    turn = {Case(name, *rules[i // each % len(rules)], long) for i, name in enumerate(EVICTING) if i % each == 0}
    return [
        pytest.param(case, id=str(case), marks=() if case in plain else pytest.mark.slow)
        for case in sorted(plain | turn, key=str)
    ]


every_kind = pytest.mark.parametrize("case", cases(KINDS))
every_case = pytest.mark.parametrize("case", cases(PLAIN, each=1))
every_long_case = pytest.mark.parametrize("case", cases(LONG_PLAIN, long=True))
# Three engines a case, with all of XLA's optimisations. tests/engine has bit-equality over batch sizes, too.
batch_cases = pytest.mark.parametrize(
    "case", [pytest.param(Case(name), id=name, marks=pytest.mark.slow) for name in ("h2o", "keydiff")]
)


def requests(*lengths: int, new_tokens: int = 60, seed: int = 0) -> list[Request]:
    return [Request(f"r{seed}.{i}", p, new_tokens + 5 * i) for i, p in enumerate(prompts(*lengths, seed=seed))]


SHORT = requests(5, 20, 9, 13, 3)
LONG = requests(45, 7, 63, 41, new_tokens=30, seed=1)


@dataclasses.dataclass
class Run:
    """What became of a request."""

    tokens: list[int] = dataclasses.field(default_factory=list)
    kept: list = dataclasses.field(default_factory=list)
    snapshots: list[Any] = dataclasses.field(default_factory=list)


def events(engine: Engine, todo: list[Request], change: Callable[[DecodeState], DecodeState] | None) -> Iterator:
    """The engine's events; ``change`` is applied to its state before it starts and after each of them."""
    if change:
        engine.state = change(engine.state)
    for event in engine.run(todo, trace=True):
        yield event
        if change:
            engine.state = change(engine.state)


def follow(
    engine: Engine,
    todo: list[Request],
    change: Callable[[DecodeState], DecodeState] | None = None,
    *,
    snapshots: bool = False,
) -> dict[str, Run]:
    runs: dict[str, Run] = collections.defaultdict(Run)
    for event in events(engine, todo, change):
        if isinstance(event, Eviction):
            runs[event.request.id].kept.append((event.position, event.kept))
            if snapshots:
                runs[event.request.id].snapshots.append(snapshot(engine, event.request))
        elif isinstance(event, Completion):
            runs[event.request.id].tokens = event.token_ids
            runs[event.request.id].kept.append(event.kept)
    return dict(runs)


def snapshot(engine: Engine, request: Request) -> list[np.ndarray]:
    """All that a row at work carries from step to step, bit for bit; dead slots and unused ring places left out."""
    state, key = engine.state, request_key(engine.seed, request.id, request.sample)
    (row,) = np.flatnonzero((np.asarray(state.key) == key).all(axis=1))
    length, newest = int(state.cache.length[row]), int(state.position[row]) - 1
    follows = lambda x: x.shape[1:] == state.cache.positions.shape[1:]
    leaves = [x[row, :, :, :length] if follows(x) else x[row] for x in jax.tree.leaves(state.policy)]
    for layer in state.cache.layers:
        leaves += [layer.k[row, :, :length], layer.v[row, :, :length]]
        if layer.queries is not None:
            n = layer.queries.shape[1]
            leaves.append(layer.queries[row, np.unique(np.arange(max(0, newest - n + 1), newest + 1) % n)])
    leaves += [x[row, :, :, :length] for x in (state.cache.positions, state.slot_tokens) if x is not None]
    return [np.asarray(x) for x in leaves]


def check_what_stays(case: Case, todo: list[Request]) -> None:
    engine, rule = fresh(case), case.rule
    counted, before = collections.Counter(), {}
    for event in events(engine, todo, None):
        assert int(engine.state.cache.length.max()) <= BUDGET
        assert engine.kv_bytes == CONFIG.kv_bytes(3, BUDGET, 4)
        if isinstance(event, Completion):
            assert event.peak_slots == min(BUDGET, len(event.request.prompt_ids) + len(event.token_ids) - 1)
            assert event.evictions == counted[event.request.id]
            assert event.evictions > 0
        if not isinstance(event, Eviction):
            continue
        id, prompt, newest = event.request.id, len(event.request.prompt_ids), event.position
        assert event.event == counted[id]
        counted[id] += 1
        kept = np.asarray(event.kept)  # ragged if the heads kept different numbers
        per_head = case.granularity == "head"
        assert kept.shape == ((CONFIG.n_layers, CONFIG.n_kv_heads) if per_head else ()) + (rule.retain,)
        kept = kept.reshape(-1, rule.retain)
        assert (np.diff(kept) > 0).all()
        assert (kept[:, -WINDOW:] == np.arange(newest - WINDOW + 1, newest + 1)).all()
        assert (kept[:, : rule.sinks] == np.arange(rule.sinks)).all()
        if rule.pin_prompt:
            assert (kept[:, :prompt] == np.arange(prompt)).all()
        # What has gone does not come back.
        last, old = before.get(id, (-1, np.zeros((len(kept), 0), int)))
        for now, then in zip(kept, old, strict=True):
            assert set(now[now <= last].tolist()) <= set(then.tolist())
        before[id] = newest, kept
        (row,) = np.flatnonzero((np.asarray(engine.state.key) == request_key(SEED, id, 0)).all(axis=1))
        held = np.asarray(engine.state.cache.positions[row, ..., : int(engine.state.cache.length[row])])
        if case.kind == "bulk":
            np.testing.assert_array_equal(held.reshape(kept.shape), kept)  # in slots of their order
        else:
            held = np.sort(held.reshape(len(kept), -1))
            assert (held[:, : rule.retain] == kept).all()
            assert (np.diff(held) > 0).all()
    assert engine.traces["decode"] == 1
    assert set(engine.traces.values()) == {1}


@every_case
def test_never_more_than_the_budget_and_exactly_what_the_rule_keeps(case):
    check_what_stays(case, SHORT)


@every_long_case
def test_the_same_while_a_prompt_longer_than_the_budget_is_read(case):
    check_what_stays(case, LONG)


def poison(state: DecodeState) -> DecodeState:
    """NaN in dead slots, and in places of the query ring that hold no query of the row's request."""
    cache = state.cache
    dead = (jnp.arange(cache.budget)[None] >= cache.length[:, None])[:, None, :, None]
    layers = []
    for layer in cache.layers:
        queries = layer.queries
        if queries is not None:
            n, newest = queries.shape[1], state.newest[:, None]
            unused = newest - (newest - jnp.arange(n)[None]) % n < 0
            queries = jnp.where(unused[:, :, None, None], jnp.nan, queries)
        layers.append(type(layer)(jnp.where(dead, jnp.nan, layer.k), jnp.where(dead, jnp.nan, layer.v), queries))
    return dataclasses.replace(state, cache=dataclasses.replace(cache, layers=tuple(layers)))


@every_case
def test_nan_in_dead_slots_and_unused_ring_places_changes_nothing(case):
    assert follow(fresh(case), SHORT, jax.jit(poison)) == follow(fresh(case), SHORT)


@every_long_case
def test_the_same_for_prompts_longer_than_the_budget(case):
    assert follow(fresh(case), LONG, jax.jit(poison)) == follow(fresh(case), LONG)


@every_kind
def test_a_budget_as_long_as_the_sequence_gives_the_full_caches_tokens(case):
    # The last token of a completion never enters the buffer.
    todo = [Request(r.id, r.prompt_ids, BUDGET + 1 - len(r.prompt_ids)) for r in SHORT]
    got, full = follow(fresh(case), todo), follow(fresh(Case("full")), todo)
    everything = list(range(BUDGET))
    for id, run in got.items():
        assert run.tokens == full[id].tokens
        (kept,) = run.kept
        assert np.array_equal(kept, np.broadcast_to(everything, np.shape(kept)))


def assert_same(one: dict[str, Run], other: dict[str, Run]) -> None:
    """Tokens, what was kept, and every bit that the rows carried."""
    assert one.keys() == other.keys()
    for id, run in one.items():
        assert run.tokens == other[id].tokens
        assert run.kept == other[id].kept
        assert len(run.snapshots) == len(other[id].snapshots) == len(run.kept) - 1
        for a, b in zip(itertools.chain(*run.snapshots), itertools.chain(*other[id].snapshots), strict=True):
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            np.testing.assert_array_equal(a.view(np.uint8), b.view(np.uint8))


@every_case
def test_a_row_is_the_same_bit_for_bit_in_any_place_beside_any_rows(case):
    together = follow(fresh(case), SHORT, snapshots=True)
    assert_same(follow(fresh(case), SHORT[::-1], snapshots=True), together)
    alone: dict[str, Run] = {}
    for request in SHORT[1:3]:
        alone |= follow(fresh(case), [request], snapshots=True)
    assert_same(alone, {id: together[id] for id in alone})


@batch_cases
def test_a_row_is_the_same_bit_for_bit_at_any_batch_size(case):
    with optimised(True):  # of prefill, which is compiled as prompts come
        three = follow(fresh(case, as_users_do=True), SHORT, snapshots=True)
        for batch_size in (1, 8):
            assert_same(follow(fresh(case, batch_size, as_users_do=True), SHORT, snapshots=True), three)


def scramble(state: DecodeState) -> DecodeState:
    """Junk wherever a former request could have left something."""
    junk = lambda x: jnp.full_like(x, jnp.nan if jnp.issubdtype(x.dtype, jnp.floating) else 1)
    books = ["policy", "slot_tokens", "token", "prompt_length", "generated", "limit", "key", "evictions", "peak"]
    layers, positions = jax.tree.map(junk, (state.cache.layers, state.cache.positions))
    cache = dataclasses.replace(state.cache, layers=layers, positions=positions)
    return dataclasses.replace(state, cache=cache, **jax.tree.map(junk, {name: getattr(state, name) for name in books}))


@every_kind
def test_nothing_survives_from_one_request_to_the_next(case):
    engine = fresh(case)
    alone = follow(engine, SHORT)
    engine = fresh(case)
    follow(engine, requests(11, 4, 24, seed=5))
    assert follow(engine, SHORT) == alone
    engine.state = scramble(fresh(case).state)
    assert follow(engine, SHORT) == alone


@batch_cases
def test_nothing_survives_in_the_only_row(case):
    first, second = requests(24, 6, seed=6)
    engine = fresh(case, 1, as_users_do=True)
    follow(engine, [first])
    after = follow(engine, [second], snapshots=True)
    assert_same(after, follow(fresh(case, 1, as_users_do=True), [second], snapshots=True))


@pytest.mark.parametrize("case", cases(KINDS, EVERY_RULE[:2]))
def test_decode_holds_no_copy_of_the_buffer(case):
    engine = compiled(case, 3)
    buffer = f"f32[3,{CONFIG.n_kv_heads},{BUDGET},{CONFIG.head_dim}]"
    text = engine.compiled_decode.as_text()
    assert buffer in text
    assert not [line for line in text.splitlines() if re.search(r"= \S+ copy(-start)?\(", line) and buffer in line]
    assert engine.compiled_decode.memory_analysis().alias_size_in_bytes >= engine.kv_bytes


@every_case
def test_only_what_a_policy_asks_for_is_carried_and_computed(case):
    engine, needs = fresh(case), ZOO[case.name].policy.needs
    for layer in engine.state.cache.layers:
        assert (layer.queries is None) == (needs.queries == 0)
        assert layer.queries is None or layer.queries.shape == (3, needs.queries, CONFIG.n_heads, CONFIG.head_dim)
    assert (engine.state.slot_tokens is None) == (not needs.tokens)
    assert (ATTENTION_PASSES[case, 3, False] > 0) == needs.attention


@every_case
def test_its_engines_were_compiled_once(case):
    """Last of a case's tests: whatever was asked of its engines, nothing was traced again."""
    for batch_size, as_users_do in itertools.product((3, 1, 8), (False, True)):
        if (case, batch_size, as_users_do) in ATTENTION_PASSES:
            traces = compiled(case, batch_size, *[True] * as_users_do).traces
            assert traces["decode"] == 1
            assert set(traces.values()) == {1}
