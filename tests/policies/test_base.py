"""Selection, protection and the tie rule against plain Python; the budget words."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jkv.engine.priority import priority, victim
from jkv.engine.state import EVICTION, request_key, row_keys
from jkv.errors import UserError
from jkv.models.config import ModelConfig
from jkv.ops.select import select
from jkv.policies import Policy, Random, Retention, Slots, get_policy, policy_names, register
from jkv.policies.retention import retain_by_ratio

S = 24


MODEL = ModelConfig("llama", 97, 40, 72, 3, 4, 2, 12, 1e4)


def slots_of(positions: np.ndarray, prompt_length: int = 0, seed: int = 0, rule: Retention | None = None) -> Slots:
    """A full buffer of one row, [1, l, k, S]."""
    newest = jnp.asarray([int(positions.max())], jnp.int32)
    key = jnp.asarray(request_key(seed, "x", 0))[None]
    return Slots(
        positions=jnp.asarray(positions, jnp.int32),
        occupied=jnp.ones((1, positions.shape[-1]), jnp.bool_),
        length=jnp.asarray([positions.shape[-1]], jnp.int32),
        newest=newest,
        prompt_length=jnp.asarray([prompt_length], jnp.int32),
        rng=row_keys(key, EVICTION, newest),
        rule=rule or Retention(S, 10),
        model=MODEL,
    )


@given(
    scores=st.lists(st.sampled_from([-math.inf, -1.0, 0.0, 0.5, 2.0, math.inf]), min_size=S, max_size=S),
    order=st.permutations(range(S)),
    retain=st.integers(1, S),
)
@settings(max_examples=80, deadline=None)
def test_select_and_victim_follow_the_tie_rule(scores, order, retain):
    ranked = sorted(zip(scores, order, range(S), strict=True))
    keep = sorted(slot for _, _, slot in ranked[S - retain :])
    score = jnp.asarray(scores, jnp.float32).reshape(1, 1, 1, S)
    position = jnp.asarray(order, jnp.int32).reshape(1, 1, 1, S)
    assert select(score, position, retain)[0, 0, 0].tolist() == keep
    assert int(victim(score, position)[0, 0, 0]) == ranked[0][2]


@given(
    gaps=st.lists(st.integers(1, 5), min_size=S, max_size=S),
    window=st.integers(0, 8), sinks=st.integers(0, 6), prompt=st.integers(0, 8), pin=st.booleans(),
    score=st.lists(st.sampled_from([-math.inf, 0.0, 1.0, math.inf, math.nan]), min_size=S, max_size=S),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_protected_tokens_survive_any_score_and_exactly_retain_stay(gaps, window, sinks, prompt, pin, score):
    scores = jnp.asarray(score, jnp.float32).reshape(1, 1, 1, S)
    positions = np.cumsum([0, *gaps[1:]])
    protected = {
        int(p)
        for p in positions
        if p > positions.max() - window or p < sinks or (pin and p < prompt)
    }  # fmt: skip
    fewest = max(1, len(protected))
    for retain in sorted({fewest, (fewest + S) // 2, S - 1} & set(range(fewest, S))):
        rule = Retention(S, max(retain, sinks + window, 1), window, sinks, pin)
        slots = slots_of(positions.reshape(1, 1, 1, S), prompt, rule=rule)
        kept = select(priority(scores, slots), slots.positions, rule.retain)
        kept_positions = {int(positions[i]) for i in kept[0, 0, 0].tolist()}
        assert len(kept_positions) == rule.retain
        assert protected <= kept_positions


def test_dead_slots_are_never_kept_before_live_ones():
    slots = slots_of(np.arange(S).reshape(1, 1, 1, S))
    live = jnp.arange(S)[None] < 10
    slots = dataclasses.replace(slots, occupied=live)
    scores = jnp.full((1, 1, 1, S), 1.0).at[..., 10:].set(jnp.inf)
    kept = select(priority(scores, slots), slots.positions, 10)
    assert kept[0, 0, 0].tolist() == list(range(10))


def test_infinite_and_undefined_scores_have_their_place():
    """+inf is the highest a policy can say, newest kept among equals; NaN is as low as -inf; both above a dead slot."""
    slots = slots_of(np.arange(S).reshape(1, 1, 1, S))
    scores = jnp.zeros((1, 1, 1, S)).at[..., jnp.asarray([2, 5, 7])].set(jnp.inf).at[..., 9].set(jnp.nan)
    ranked = priority(scores.at[..., 11].set(-jnp.inf), slots)
    assert select(ranked, slots.positions, 2)[0, 0, 0].tolist() == [5, 7]
    assert sorted(set(range(S)) - set(select(ranked, slots.positions, S - 2)[0, 0, 0].tolist())) == [9, 11]
    dead = priority(scores, dataclasses.replace(slots, occupied=jnp.arange(S)[None] != 3))
    assert int(victim(dead, slots.positions)[0, 0, 0]) == 3


def test_scores_per_head_are_averaged_when_the_keep_set_is_shared():
    slots = slots_of(np.arange(S).reshape(1, 1, 1, S))
    scores = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, 2, S)), jnp.float32)
    got = priority(scores, slots)
    np.testing.assert_allclose(got, scores.mean((1, 2), keepdims=True), rtol=1e-6)


def test_random_keeps_every_token_equally_often():
    # 10 of 24 stay, 4000 evictions of requests with other ids: every slot's count is binomial.
    slots = slots_of(np.arange(S).reshape(1, 1, 1, S))
    rule, draws = Retention(S, 10), 4000
    raw = jnp.asarray(np.stack([request_key(3, str(i), 0) for i in range(draws)]))
    many = lambda x: jnp.broadcast_to(x, (draws, *x.shape[1:]))
    slots = Slots(
        positions=many(slots.positions), occupied=many(slots.occupied), length=many(slots.length),
        newest=many(slots.newest), prompt_length=many(slots.prompt_length), rule=rule, model=MODEL,
        rng=row_keys(raw, EVICTION, many(slots.newest)),
    )  # fmt: skip
    kept = select(priority(Random().score((), slots), slots), slots.positions, rule.retain)
    counts = np.bincount(np.asarray(kept).ravel(), minlength=S)
    # Draws without replacement vary less than a multinomial's: scale the statistic by its own variance.
    statistic = ((counts - draws * 10 / S) ** 2).sum() / (draws * 10 / S * (1 - 10 / S)) * (S - 1) / S
    assert 1e-3 < stats.chi2.sf(statistic, S - 1) < 1 - 1e-3


def test_random_draws_by_position_not_by_slot():
    positions = np.arange(S)
    shuffled = np.random.default_rng(0).permutation(S)
    straight = Random().score((), slots_of(positions.reshape(1, 1, 1, S)))[0, 0, 0]
    mixed = Random().score((), slots_of(shuffled.reshape(1, 1, 1, S)))[0, 0, 0]
    np.testing.assert_array_equal(mixed, straight[shuffled])


def test_random_draws_anew_for_each_layer_and_head():
    slots = slots_of(np.broadcast_to(np.arange(S), (1, 3, 2, S)))
    scores = np.asarray(Random().score((), slots)).reshape(6, S)
    assert len(np.unique(scores.round(6))) > 6 * S - 3


def test_the_papers_ratio():
    assert retain_by_ratio(3000, 2000, 0.3) == 2300
    assert retain_by_ratio(2500, 2000, 0.4) == 2200
    assert retain_by_ratio(10, 20, 0.3) == 20


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"budget": 0, "retain": 0}, "0 slots"),
        ({"budget": 8, "retain": 9}, "outside 1..8"),
        ({"budget": 8, "retain": 0}, "outside 1..8"),
        ({"budget": 8, "retain": 6, "window": 4, "sinks": 3}, "4 = 7 don't fit the 6"),
        ({"budget": 8, "retain": 6, "window": -1}, "window is -1"),
    ],
)
def test_words_that_contradict_each_other_are_refused(words, message):
    with pytest.raises(UserError, match=message):
        Retention(**words)


def test_prompts_that_cannot_be_protected_are_refused():
    Retention(32, 24, 4, 0, True).check_prompt(20, "p")
    with pytest.raises(UserError, match=r"prompt of 21 \+ window 4 = 25 tokens don't fit the 24"):
        Retention(32, 24, 4, 0, True).check_prompt(21, "p")
    with pytest.raises(UserError, match="33 tokens, the budget 32"):
        Retention(32, 24, 4).check_prompt(33, "p")


def test_registering_a_policy():
    class Mine(Policy):
        name = "mine"

    register(Mine)
    assert get_policy("mine") is Mine
    assert "mine" in policy_names()

    class Other(Policy):
        name = "mine"

    with pytest.raises(ValueError, match="belongs to"):
        register(Other)
    with pytest.raises(UserError, match="choose one of"):
        get_policy("nope")
