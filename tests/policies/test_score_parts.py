"""The parts of scores against plain loops: redundancy, pooling, the highest few, draws, remembered attention."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

import jkv.ops.key_similarity.xla
from jkv.config.decode import DecodeConfig
from jkv.engine.state import EVICTION, request_key, row_keys
from jkv.models.config import ModelConfig
from jkv.models.predictor import importance
from jkv.policies import GKV, H2O, Retention, Slots, VaSE, observed
from jkv.policies.redundancy import redundancy
from jkv.policies.trimkv import retention_gate
from jkv.policies.vase import _highest
from tests.policies.zoo import gates, predictor

SIZES = [1, 11]  # every new size is compiled anew


def slots_of(positions: Any, *, rule: Retention, model: ModelConfig | None = None, **fields: Any) -> Slots:
    """Slots of one row from its positions [l, k, S]; all occupied unless told otherwise."""
    positions = jnp.asarray(positions, jnp.int32)[None]
    newest = jnp.max(positions, axis=(1, 2, 3))
    return Slots(**{
        "positions": positions,
        "occupied": jnp.ones((1, positions.shape[-1]), jnp.bool_),
        "length": jnp.asarray([positions.shape[-1]], jnp.int32),
        "newest": newest,
        "prompt_length": jnp.zeros((1,), jnp.int32),
        "rng": row_keys(jnp.asarray(request_key(0, "x", 0))[None], EVICTION, newest),
        "rule": rule,
        "model": model or ModelConfig("llama", 97, 40, 72, 1, 2, 1, 2, 1e4),
        **fields,
    })  # fmt: skip


def plain_redundancy(keys: np.ndarray, positions: np.ndarray, occupied: np.ndarray, threshold: float) -> np.ndarray:
    """One head: for each key, the sum of its cosine with all others that do not spare it; softmax of the mean."""
    n = len(keys)
    cosine = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            size = math.sqrt(sum(keys[i] ** 2)) * math.sqrt(sum(keys[j] ** 2))
            cosine[i, j] = sum(keys[i] * keys[j]) / size if size and i != j else 0
    total = np.zeros(n)
    for i in range(n):  # the key that points
        alike = [j for j in range(n) if cosine[i, j] > threshold]
        spared = max(alike, key=lambda j: positions[j], default=None)
        for j in range(n):
            total[j] += 0 if j == spared or not occupied[i] else cosine[i, j]
    weights = np.where(occupied, np.exp(total / occupied.sum()), 0)
    return weights / weights.sum()


@functools.partial(jax.jit, static_argnums=(3, 4))
def blocked_redundancy(keys, positions, occupied, threshold: float, block: int) -> jax.Array:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jkv.ops.key_similarity.xla, "BLOCK", block)
        return redundancy(keys, positions, occupied, threshold)


@given(
    data=st.data(), sizes=st.sampled_from([(1, 3), (3, 2), (11, 4), (11, 256)]), dead=st.integers(0, 4),
    threshold=st.sampled_from([0.0, 0.5, 0.9]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_redundancy_is_what_three_loops_say(data, sizes, dead, threshold):
    slots, block = sizes
    # Small integers: equal, opposite and zero keys are common, and cosines keep away from the threshold.
    axis = st.lists(st.integers(-2, 2), min_size=3, max_size=3)
    keys = np.array(data.draw(st.lists(axis, min_size=slots, max_size=slots)), float)
    positions = np.array(data.draw(st.permutations(range(3, 3 + slots))))
    occupied = np.arange(slots) < max(1, slots - dead)
    live = keys[occupied]
    size = np.maximum(np.linalg.norm(live, axis=-1), 1e-9)
    apart = np.abs(live @ live.T / size[:, None] / size[None] - threshold)
    np.fill_diagonal(apart, 1)
    assume(len(live) < 2 or apart[live.any(-1)][:, live.any(-1)].size == 0 or apart[live.any(-1)].min() > 1e-4)

    expected = plain_redundancy(np.where(occupied[:, None], keys, 0), positions, occupied, threshold)
    buffer = np.where(occupied[:, None], keys, np.nan)  # what is dead may hold anything
    got = blocked_redundancy(
        jnp.asarray(buffer, jnp.float32)[None, None], jnp.asarray(positions, jnp.int32)[None, None],
        jnp.asarray(occupied)[None], threshold, block,
    )  # fmt: skip
    np.testing.assert_allclose(got[0, 0], expected, rtol=1e-5, atol=1e-7)


def test_redundancy_of_real_valued_keys_in_ragged_blocks():
    rng = np.random.default_rng(0)
    keys, positions = rng.normal(size=(2, 2, 37, 6)) + 1, np.stack([rng.permutation(37)] * 2)[:, None]
    occupied = np.arange(37)[None] < np.array([[37], [29]])
    expected = [
        [plain_redundancy(np.where(live[:, None], k, 0), p[0], live, 0.5) for k in heads]
        for heads, p, live in zip(keys, positions, occupied, strict=True)
    ]
    given = jnp.asarray(keys, jnp.float32), jnp.asarray(positions, jnp.int32), jnp.asarray(occupied)
    for block in (1, 8, 36, 37, 256):
        got = blocked_redundancy(*given, 0.5, block)
        np.testing.assert_allclose(got, expected, rtol=2e-5)


@given(
    data=st.data(), slots=st.sampled_from(SIZES), width=st.sampled_from([1, 4, 5]),
    kind=st.sampled_from(["max", "avg"]), overwritten=st.booleans(), dead=st.integers(0, 4),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_pool_goes_over_neighbours_in_order_of_position(data, slots, width, kind, overwritten, dead):
    scores = np.array(data.draw(st.lists(st.integers(0, 9), min_size=slots, max_size=slots)), float)
    left_out = np.array(data.draw(st.lists(st.booleans(), min_size=slots, max_size=slots)))
    occupied = np.ones(slots, bool)
    if overwritten:
        order = data.draw(st.permutations(range(slots)))
    else:  # only here a row that is not full could be pooled
        order, occupied = range(slots), np.arange(slots) < max(1, slots - dead)
    positions = np.array(order) * 3 + 1

    inside = occupied & ~left_out
    ranked = sorted(range(slots), key=lambda slot: positions[slot])
    expected = np.zeros(slots)
    for place, slot in enumerate(ranked):
        around = ranked[max(0, place - (width - 1) // 2) : place + width // 2 + 1]
        there = [scores[other] for other in around if inside[other]]
        expected[slot] = max(there, default=-math.inf) if kind == "max" else sum(there) / width

    rule = Retention(slots + (1 if overwritten else 2), slots)
    row = slots_of(positions[None, None], rule=rule, occupied=jnp.asarray(occupied)[None])
    assert row.ascending != overwritten
    got = observed.pool(
        jnp.asarray(scores, jnp.float32)[None, None], row, 0, width=width, kind=kind,
        leave_out=jnp.asarray(left_out)[None, None],
    )  # fmt: skip
    # Without neighbours nothing is pooled, and what is left out keeps the score it came with.
    compared = inside if width == 1 else np.ones(slots, bool)
    np.testing.assert_allclose(got[0, 0][compared], expected[compared], rtol=1e-6)


@given(
    data=st.data(), slots=st.sampled_from(SIZES),
    scores=st.lists(st.sampled_from([-math.inf, -1.0, 0.0, 0.5, 2.0]), min_size=24, max_size=24),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_the_highest_few_and_the_newest_among_equals(data, slots, scores):
    n = data.draw(st.integers(0, slots))
    positions = np.array([data.draw(st.permutations(range(slots))) for _ in range(2)])
    x = np.reshape(scores[: 2 * slots], (2, slots))
    expected = np.zeros((2, slots), bool)
    for head in range(2):
        ranked = sorted(range(slots), key=lambda slot: (x[head, slot], positions[head, slot]))
        expected[head, ranked[slots - n :]] = True
    row = slots_of(positions[None], rule=Retention(slots, slots))
    np.testing.assert_array_equal(_highest(jnp.asarray(x, jnp.float32)[None, None], n, row)[0, 0], expected)


@pytest.mark.parametrize("granularity", ["shared", "head"])
def test_vase_draws_in_proportion_to_attention(granularity):
    """One slot is drawn, by very many rows that differ in nothing but their random keys."""
    slots, sinks, queries, draws = 24, 4, 8, 6000
    model = ModelConfig("llama", 97, 40, 72, 2, 4, 2, 6, 1e4)
    rng = np.random.default_rng(0)
    keys, values = rng.normal(size=(2, 2, 2, slots, 6))
    ring = rng.normal(size=(2, queries, 4, 6))  # the newest query is at place 23 mod 8 = 7: places are in order

    # Shares [layer, head, slot]: causal attention of the last 8, mean over queries and the group, average over five.
    shares = np.zeros((2, 2, slots))
    for layer in range(2):
        for head in range(4):
            for place, at in enumerate(range(slots - queries, slots)):
                weights = np.exp(keys[layer, head // 2] @ ring[layer, place, head] / math.sqrt(6))
                weights[at + 1 :] = 0
                shares[layer, head // 2] += weights / weights.sum() / queries / 2
    padded = np.pad(shares, ((0, 0), (0, 0), (2, 2)))
    shares = np.mean([padded[..., i : i + slots] for i in range(5)], axis=0)
    spread = values.max(-1) - values.min(-1)
    if granularity == "shared":
        shares, spread = shares.mean((0, 1), keepdims=True), spread.mean((0, 1), keepdims=True)

    # A quarter of the budget goes to the widest values: 4 sinks, 6 of these, and one that is drawn.
    rule = Retention(slots, sinks + 6 + 1, 0, sinks, granularity=granularity)
    position = np.broadcast_to(np.arange(slots), shares.shape)
    row = slots_of(
        position, rule=rule, model=model, keys=tuple(jnp.asarray(keys, jnp.float32)[:, None]),
        values=tuple(jnp.asarray(values, jnp.float32)[:, None]),
        queries=tuple(jnp.asarray(ring, jnp.float32)[:, None]),
    )  # fmt: skip
    policy = VaSE(queries=queries)
    raw = jnp.asarray(np.stack([request_key(0, str(i), 0) for i in range(draws)]))
    lots = row_keys(raw, EVICTION, jnp.broadcast_to(row.newest, (draws,)))

    @jax.jit
    def score(key: jax.Array) -> jax.Array:
        return policy.score((), dataclasses.replace(row, rng=key[None]))[0]

    scores = np.asarray(jax.lax.map(score, lots, batch_size=500))  # [draws, l, k, S]
    for layer, head in np.ndindex(shares.shape[:2]):
        free = np.arange(slots) >= sinks
        widest = np.isin(np.arange(slots), sorted(np.flatnonzero(free), key=lambda i: spread[layer, head, i])[-6:])
        assert np.array_equal(np.isposinf(scores[:, layer, head]), np.broadcast_to(widest, (draws, slots)))
        drawable = free & ~widest
        drawn = np.where(drawable, scores[:, layer, head], -np.inf).argmax(-1)
        counts = np.bincount(drawn, minlength=slots)[drawable]
        expected = shares[layer, head][drawable] / shares[layer, head][drawable].sum() * draws
        assert expected.min() > 20
        assert 1e-4 < stats.chisquare(counts, expected).pvalue < 1 - 1e-4


def test_gkv_remembers_the_larger_of_what_it_saw_and_sees():
    """Two queries, two heads that share a KV head, five slots; the last two slots hold the queries' own tokens.

    The query of position 3 looks at all alike. At position 4 the first head's weights are (4, 2, 1, 1, 1) / 9, the
    second's a fifth each: the larger of both, averaged with a quarter, is (25/72, 17/72, 9/40).
    """
    key = jnp.asarray([[math.log(4), 0], [math.log(2), 0], [0, 0], [0, 0], [0, 0]], jnp.float32)
    ring = jnp.zeros((1, 2, 2, 2)).at[0, 0, 0, 0].set(math.sqrt(2))  # position 4 is at place 0
    row = slots_of(
        np.arange(5)[None, None], rule=Retention(5, 3), keys=(key[None, None],), queries=(ring,),
        values=(key[None, None],),
    )  # fmt: skip
    policy = GKV(lam=1.0, decay=0.8, queries=2)
    seen = np.array([1, 17 / 25, 0.648, 0, 0])
    before = jnp.asarray([0.5, 1.0, 0.2, 0.3, 0.0])[None, None, None]
    once = policy.look(before, row)
    np.testing.assert_allclose(once[0, 0, 0], [1, 0.8, 0.648, 0.24, 0], rtol=1e-6)
    twice = policy.look(once, row)
    np.testing.assert_allclose(twice[0, 0, 0], [1, seen[1], 0.648, 0.192, 0], rtol=1e-6)
    # With lambda 1 the score is what is remembered; the observed tokens get the highest of the others.
    np.testing.assert_allclose(policy.score(once, row)[0, 0, 0], [1, 0.8, 0.648, 1, 1], rtol=1e-6)


@pytest.mark.parametrize(("which", "d_model"), [("dynts", 40), ("trimkv", 64), ("dynts", 128)])
def test_a_token_scores_the_same_bit_for_bit_beside_any_rows(which, d_model):
    config = ModelConfig("llama", 97, d_model, 72, 1, 4, 2, 12, 1e4)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(40, 1, d_model)), jnp.float32)
    parameters = predictor(config) if which == "dynts" else gates(config)[0]
    score = jax.jit(functools.partial(importance if which == "dynts" else retention_gate, parameters))
    alone = np.asarray(score(x[:1]))[0]
    for rows in (2, 3, 4, 7, 8, 9, 16, 17, 32, 33, 40):
        np.testing.assert_array_equal(np.asarray(score(x[:rows]))[0].view(np.uint32), alone.view(np.uint32), f"{rows}")


# The half is rounded down, and so is what the ratio keeps.
WORDS = {
    "all by default": {},
    "retain": {"retain": 40},
    "one out": {"retain": 63},
    "ratio": {"ratio": 0.25},
}


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS.keys())
def test_half_of_what_h2o_keeps_is_its_window(words):
    config = DecodeConfig(policy="h2o", budget=64, **words)
    rule = config.retention(H2O(), longest=1)
    assert rule.window in (rule.retain // 2, (rule.retain + 1) // 2)
