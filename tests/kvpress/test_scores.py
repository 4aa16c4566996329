"""Scores and kept tokens against kvpress, for the policies that both define alike.

kvpress wants an older transformers than jkv's other tests, so these tests have an environment of their own:
``pip install -e '.[kvpress]' && pytest -n 0 tests/kvpress``. Elsewhere they are skipped.
"""

import dataclasses
import functools
from typing import Any

import pytest

pytest.importorskip("kvpress", reason="needs an environment of its own: pip install -e '.[kvpress]'")

import jax
import jax.numpy as jnp
import numpy as np
import torch
from kvpress import BasePress, ExpectedAttentionPress, KeyDiffPress, KnormPress, ScorerPress, SnapKVPress, TOVAPress
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from converters.config import from_hf
from jkv.engine.priority import priority, victim
from jkv.engine.state import EVICTION, request_key, row_keys
from jkv.models.config import ModelConfig
from jkv.ops.select import select
from jkv.policies import Policy, Retention, Slots
from jkv.policies.expected_attention import ExpectedAttention
from jkv.policies.keydiff import KeyDiff
from jkv.policies.knorm import KNorm
from jkv.policies.snapkv import SnapKV
from jkv.policies.tova import TOVA
from tests.support import tiny

LENGTH = 90  # of the prompt
DEAD = 5  # slots that hold nothing yet

# Both sides compute in float32, in different orders: some roundings of a logit become a relative error of its softmax,
# and a norm has a relative error anyway. So each score is compared relative to itself, however small it is, except
# cosines, which cancel to near zero from terms up to 1.
RTOL = 1e-5
COSINE_ATOL = 1e-6


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """A press and the policy of the same definition.

    newest, first: how many tokens are kept for their place and have no score.
    """

    name: str
    press: ScorerPress
    policy: Policy
    newest: int = 0
    first: int = 0
    atol: float = 0.0

    @property
    def scored(self) -> slice:
        """Positions with a score of their own."""
        return slice(self.first, LENGTH - self.newest)


def snapkv(queries: int, **options: Any) -> SnapKV:
    """The variant that kvpress has: average-pool 5, mean over the group."""
    return SnapKV(queries, **{"pool": "avg", "width": 5, "group": "mean", **options})


ALL_QUERIES = LENGTH + 3  # a ring that isn't full
PAIRS = (
    Pair("knorm", KnormPress(), KNorm()),
    Pair("keydiff", KeyDiffPress(), KeyDiff(), atol=COSINE_ATOL),
    Pair("tova", TOVAPress(), TOVA(), newest=1),
    Pair("snapkv", SnapKVPress(), snapkv(64), newest=64),
    Pair("snapkv-7-3", SnapKVPress(window_size=7, kernel_size=3), snapkv(7, width=3), newest=7),
    Pair("expected", ExpectedAttentionPress(), ExpectedAttention(ALL_QUERIES), first=4),
    Pair(
        "expected-7-2",
        ExpectedAttentionPress(n_future_positions=7, n_sink=2),
        ExpectedAttention(ALL_QUERIES, future=7, skip=2),
        first=2,
    ),
)


class Recorder(BasePress):
    """Keeps what kvpress shows its presses, layer by layer, and evicts nothing."""

    def __init__(self):
        self.seen: list[tuple[Any, ...]] = []

    def compress(self, *shown: Any):
        self.seen.append(shown)
        return shown[2], shown[3]


@dataclasses.dataclass
class Run:
    """A prompt read by a transformers model: what kvpress's presses are shown, by layer, and the same for jkv."""

    model: Any
    prompt: torch.Tensor
    config: ModelConfig
    seen: list[tuple[Any, ...]]
    keys: list[np.ndarray]  # [K, T, H]
    values: list[np.ndarray]
    queries: list[np.ndarray]  # after RoPE, [T, N, H]


@functools.cache
def run(name: str) -> Run:
    member = next(member for member in tiny.FAMILY if member.name == name)
    model = member.build(seed=1)
    # No token twice: in the first layer its keys would have the same norm, and which of the two stays would be chance.
    prompt = torch.from_numpy(np.random.default_rng(1).permutation(np.arange(3, 97))[None, :LENGTH])
    recorder = Recorder()
    with torch.no_grad(), recorder(model):
        model(prompt, past_key_values=DynamicCache())
    queries = []
    for module, hidden, _, _, _, kwargs in recorder.seen:
        with torch.no_grad():
            q = module.q_proj(hidden).view(1, LENGTH, -1, module.head_dim)
            q = (module.q_norm(q) if hasattr(module, "q_norm") else q).transpose(1, 2)
            turned, _ = apply_rotary_pos_emb(q, q, *kwargs["position_embeddings"])
        queries.append(turned[0].transpose(0, 1).numpy())
    keys, values = ([shown[at][0].numpy() for shown in recorder.seen] for at in (2, 3))
    return Run(model, prompt, from_hf(model.config.to_dict()), recorder.seen, keys, values, queries)


def slots_of(run: Run, policy: Policy, *, any_order: bool = False) -> Slots:
    """What jkv shows a policy of the same run, one keep set a head.

    Slots are in order of position, followed by dead ones full of leftovers; or, in any order, all of them occupied,
    which is what evicting one token at a time makes of a buffer.
    """
    n_layers, n_kv_heads = run.config.n_layers, run.config.n_kv_heads
    rng = np.random.default_rng(0)
    dead = 0 if any_order else DEAD
    order = [rng.permutation(LENGTH) if any_order else np.arange(LENGTH) for _ in range(n_layers)]
    stale = rng.integers(0, LENGTH, dead)
    positions = np.stack([np.concatenate([places, stale]) for places in order])

    def buffers(heads: list[np.ndarray]) -> tuple[jax.Array, ...]:
        rubbish = 100 * rng.standard_normal((n_kv_heads, dead, run.config.head_dim))
        layers = [np.concatenate([x[:, places], rubbish], axis=1) for x, places in zip(heads, order, strict=True)]
        return tuple(jnp.asarray(x[None], jnp.float32) for x in layers)

    def ring(queries: np.ndarray) -> jax.Array:
        n = policy.needs.queries
        held = 100 * rng.standard_normal((n, *queries.shape[1:]))
        for position in range(max(0, LENGTH - n), LENGTH):
            held[position % n] = queries[position]
        return jnp.asarray(held[None], jnp.float32)

    newest = jnp.asarray([LENGTH - 1], jnp.int32)
    shape = (1, n_layers, n_kv_heads, LENGTH + dead)
    return Slots(
        positions=jnp.asarray(np.broadcast_to(positions[None, :, None], shape), jnp.int32),
        occupied=jnp.arange(LENGTH + dead)[None] < LENGTH,
        length=newest + 1,
        newest=newest,
        prompt_length=newest + 1,
        rng=row_keys(jnp.asarray(request_key(0, "x", 0))[None], EVICTION, newest),
        rule=Retention(LENGTH + dead, LENGTH - 1 if any_order else LENGTH // 2, granularity="head"),
        model=run.config,
        keys=buffers(run.keys) if policy.needs.keys or policy.needs.queries else None,
        values=buffers(run.values) if policy.needs.values else None,
        queries=tuple(ring(q) for q in run.queries) if policy.needs.queries else None,
    )


def scores_of(policy: Policy, slots: Slots) -> jax.Array:
    """jkv's scores, [1, L, K, S] by slot."""
    return jax.jit(policy.score)((), slots)


@functools.cache
def scored(member: str, pair: Pair, any_order: bool) -> tuple[jax.Array, Slots]:
    """A pair's policy on a member's run: its scores by slot, and what it saw."""
    slots = slots_of(run(member), pair.policy, any_order=any_order)
    return scores_of(pair.policy, slots), slots


def by_position(scores: jax.Array, slots: Slots) -> np.ndarray:
    """[L, K, T] of a row's occupied slots."""
    order = np.argsort(np.asarray(slots.positions)[0, ..., :LENGTH], axis=-1)
    return np.take_along_axis(np.asarray(scores)[0, ..., :LENGTH], order, axis=-1)


@torch.no_grad()
def scores_of_press(press: ScorerPress, run: Run, *, given_attention: bool = True) -> np.ndarray:
    """kvpress's scores, [L, K, T]."""
    layers = []
    for module, hidden, keys, values, attention, kwargs in run.seen:
        assert attention is not None
        layers.append(press.score(module, hidden, keys, values, attention if given_attention else None, kwargs)[0])
    return torch.stack(layers).numpy()


def kept_by_press(press: ScorerPress, run: Run, retain: int) -> list[list[list[int]]]:
    """Positions [L][K][retain] that kvpress leaves in the cache of a prompt, recognised by their keys."""
    cache = DynamicCache()
    press = dataclasses.replace(press, compression_ratio=1 - (retain + 0.5) / LENGTH)  # kvpress rounds down
    with torch.no_grad(), press(run.model):
        run.model(run.prompt, past_key_values=cache)
    kept = []
    for layer, keys, values in zip(cache.layers, run.keys, run.values, strict=True):
        same = (layer.keys[0].numpy()[:, :, None] == keys[:, None]).all(-1)  # [K, retain, T]
        assert same.shape[1] == retain
        assert (same.sum(-1) == 1).all()
        position = same.argmax(-1)
        np.testing.assert_array_equal(layer.values[0].numpy(), np.take_along_axis(values, position[..., None], axis=1))
        kept.append([sorted(head) for head in position.tolist()])
    return kept


members = pytest.mark.parametrize("member", ["llama3-g4", "qwen2-g7", "qwen2-yarn-tied-g2", "qwen3-g2"])
pairs = pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)


@pytest.mark.parametrize("any_order", [False, True], ids=["in-order", "any-order"])
@pairs
@members
def test_scores_are_those_of_kvpress(member, pair, any_order):
    held = run(member)
    ours = by_position(*scored(member, pair, any_order))
    for given_attention in (True, False):  # the model's own, or computed once more by kvpress
        theirs = scores_of_press(pair.press, held, given_attention=given_attention)
        assert ours.shape == theirs.shape == (held.config.n_layers, held.config.n_kv_heads, LENGTH)
        np.testing.assert_allclose(ours[..., pair.scored], theirs[..., pair.scored], rtol=RTOL, atol=pair.atol)
        # A difference that is meant. Tokens kept for their place get from kvpress 1 more than the largest score of any
        # head, from jkv the largest score of the others in their head: what the user protects comes before them.
        placed = np.ones(LENGTH, bool)
        placed[pair.scored] = False
        assert (theirs[..., placed] > theirs[..., pair.scored].max(axis=(1, 2), keepdims=True)).all()
        assert (ours[..., placed] == ours[..., pair.scored].max(axis=-1, keepdims=True)).all()


@pairs
@members
def test_what_stays_is_what_kvpress_keeps(member, pair):
    scores, slots = scored(member, pair, False)
    placed = pair.newest + pair.first
    # In jkv the best of the scored tokens is tied with those kept for their place, and of equals the newest stay. Where
    # these are the first, there has to be room for it too, or position 0 goes; in kvpress they all stay.
    least = pair.newest or pair.first + 1
    for retain in (least, placed + (LENGTH - placed) // 2):
        kept = select(priority(scores, slots), slots.positions, retain)
        ours = np.asarray(jnp.take_along_axis(slots.positions, kept, axis=-1))[0]
        assert_cut_is_clear(pair, run(member), retain)
        assert ours.tolist() == kept_by_press(pair.press, run(member), retain)


@pairs
@members
def test_the_token_overwritten_is_the_one_kvpress_drops(member, pair):
    scores, slots = scored(member, pair, True)
    slot = victim(priority(scores, slots), slots.positions)
    ours = np.asarray(jnp.take_along_axis(slots.positions, slot[..., None], axis=-1))[0, ..., 0]
    assert_cut_is_clear(pair, run(member), LENGTH - 1)
    theirs = kept_by_press(pair.press, run(member), LENGTH - 1)
    assert ours.tolist() == [[({*range(LENGTH)} - {*head}).pop() for head in layer] for layer in theirs]


def assert_cut_is_clear(pair: Pair, held: Run, retain: int) -> None:
    """The last score that stays and the first that goes differ by more than either side's rounding."""
    ranked = -np.sort(-scores_of_press(pair.press, held), axis=-1)
    stays, goes = ranked[..., retain - 1], ranked[..., retain]
    assert (stays - goes > RTOL * np.abs(goes) + pair.atol).all(), "too close to tell: take another seed"


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("tova", snapkv(1, width=1)),  # the mean over a group's heads, not all
        ("snapkv", snapkv(64, group="max")),
        ("snapkv", snapkv(64, pool="max")),
        ("snapkv", snapkv(64, width=7)),
        ("snapkv", snapkv(63)),
        ("expected", ExpectedAttention(ALL_QUERIES, future=511)),
        ("expected", ExpectedAttention(ALL_QUERIES, skip=3)),
        ("expected", ExpectedAttention(LENGTH - 5)),  # one of the queries that count is forgotten
    ],
    ids=["head-mean", "group-max", "max-pool", "width-7", "63-queries", "future-511", "skip-3", "query-short"],
)
def test_a_neighbouring_definition_is_told_apart(name, other):
    """The tolerance and the data tell a changed formula, even by one query or one position."""
    pair = next(pair for pair in PAIRS if pair.name == name)
    held = run("llama3-g4")
    slots = slots_of(held, other)
    ours = by_position(scores_of(other, slots), slots)[..., pair.scored]
    theirs = scores_of_press(pair.press, held)[..., pair.scored]
    assert (np.abs(ours - theirs) > 10 * RTOL * np.abs(theirs)).mean() > 0.5
