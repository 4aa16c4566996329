"""Scores of a traced run: they are what the eviction decided by, and recording them changes no token."""

import numpy as np
import pytest
from flax import nnx

from jkv.engine.engine import Engine
from jkv.engine.events import Request
from jkv.models import Decoder
from jkv.models.config import ModelConfig
from jkv.policies import Retention
from jkv.policies.options import make_policy
from jkv.run.record import plain_scores
from tests.support.tiny import complete, prompts

CONFIG = ModelConfig("qwen3", 97, 40, 72, 2, 6, 2, 12, 1e4, qk_norm=True, qkv_bias=True, eos_ids=(2,))
WINDOW, SINKS = 4, 2


def run(policy, retain, granularity, long, *, record):
    model = Decoder(CONFIG, rngs=nnx.Rngs(0))
    model.embed[...] = model.embed[...] * 30
    rule = Retention(32, retain, WINDOW, SINKS, False, granularity, long_prompts=True)
    engine = Engine(model, policy=make_policy(policy, {}), rule=rule, batch_size=2, eos_ids=(), record_scores=record)
    todo = [Request(f"r{i}", p, 40) for i, p in enumerate(prompts(45 if long else 12, 20, 9))]
    assert (engine.state.scored is None) == (not record)
    done, evictions = complete(engine, todo, trace=True)
    assert engine.traces["decode"] == 1
    return {id: completion.token_ids for id, completion in done.items()}, evictions


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "retain", "granularity", "long"),
    [
        ("random", 24, "shared", False),
        ("random", 31, "shared", True),
        ("snapkv", 24, "head", False),
        ("keydiff", 31, "head", False),
        ("h2o", 24, "shared", True),
    ],
)
def test_scores_say_who_stays(policy, retain, granularity, long):
    tokens, evictions = run(policy, retain, granularity, long, record=True)
    assert tokens == run(policy, retain, granularity, long, record=False)[0]
    assert {event.request.id for events in evictions.values() for event in events} == set(tokens)
    for events in evictions.values():
        shape = np.shape(events[0].kept)[:-1]
        there = [np.arange(0)] * int(np.prod(shape, dtype=int))
        last = -1
        for event in events:
            assert event.scores is not None
            assert event.scores.dtype == np.float32
            assert event.scores.shape == (*shape, 32)
            rows = event.scores.reshape(-1, 32), np.reshape(event.kept, (-1, retain))
            for s, (scores, kept) in enumerate(zip(*rows, strict=True)):
                here = np.concatenate([there[s], np.arange(last + 1, event.position + 1)])
                safe = (here > event.position - WINDOW) | (here < SINKS)
                np.testing.assert_array_equal(scores == np.inf, safe)
                best = here[np.lexsort((here, scores))[-retain:]]  # among equals the oldest goes
                np.testing.assert_array_equal(np.sort(best), kept)
                there[s] = kept
            last = event.position


def test_written_scores_are_the_same_float32s():
    scores = np.array([[0.1, np.inf], [-3.4028235e38, 1e-40]], np.float32)
    plain = plain_scores(scores)
    assert plain[0][1] is None
    assert [np.float32(x) for x in (plain[0][0], *plain[1])] == [scores[0, 0], *scores[1]]
