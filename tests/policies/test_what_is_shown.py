"""What a policy is shown, and when it is called: what it asked for and no more, at evictions only and once each."""

import collections
import functools

import jax
import jax.numpy as jnp
import pytest

import jkv.engine.chunked_prefill
import jkv.engine.prefill
import jkv.engine.step
from jkv.engine.engine import Engine
from jkv.engine.events import Completion, Request
from jkv.policies import Needs, Policy, Retention
from tests.policies.test_properties import BUDGET, RETAIN, SHORT, WINDOW, model

FIELDS = {
    "queries": (Needs(queries=3), {"slots.queries", "slots.keys"}),
    "keys": (Needs(keys=True), {"slots.keys"}),
    "values": (Needs(values=True), {"slots.values"}),
    "attention": (Needs(attention=True), {"new.attention"}),
    "hidden": (Needs(hidden=True), {"new.hidden"}),
    "inputs": (Needs(inputs=True), {"new.inputs"}),
    "tokens": (Needs(tokens=True), {"new.tokens", "slots.tokens"}),
    "nothing": (Needs(), set()),
}


OFTEN = ("queries", "attention", "hidden", "tokens")


@pytest.mark.parametrize("asked", [pytest.param(a, marks=() if a in OFTEN else pytest.mark.slow) for a in FIELDS])
def test_a_policy_is_shown_what_it_asked_for_and_no_more(asked):
    """In decode and in both ways a prompt is read; tracing is enough to see it."""
    given = {}

    class Looking(Policy):
        needs = FIELDS[asked][0]

        def observe(self, state, new):
            given["new"] = new
            return state

        def score(self, state, slots):
            given["slots"] = slots
            return slots.positions.astype(jnp.float32)

    optional = {"new": ("tokens", "hidden", "inputs", "attention"), "slots": ("tokens", "keys", "values", "queries")}
    engine = Engine(model(), policy=Looking(), rule=Retention(BUDGET, 32, WINDOW), batch_size=2)
    scalar, flag = jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((), jnp.bool_)
    prompt, key = jax.ShapeDtypeStruct((32,), jnp.int32), jax.ShapeDtypeStruct((2,), jnp.uint32)
    books = (engine.weights, engine.state)
    shown = lambda: {
        f"{kind}.{name}" for kind, x in given.items() for name in optional[kind] if getattr(x, name) is not None
    }  # fmt: skip
    decode = functools.partial(jkv.engine.step.decode, engine.setup, steps=2)
    jax.eval_shape(decode, *books, (), flag, flag)
    assert shown() == FIELDS[asked][1]
    read = functools.partial(jkv.engine.chunked_prefill.chunked_prefill, engine.setup)
    jax.eval_shape(read, *books, (), scalar, prompt, scalar, scalar, scalar, key, flag)
    assert shown() == FIELDS[asked][1]
    if asked != "attention":  # such prompts are always read in pieces
        given.clear()
        read = functools.partial(jkv.engine.prefill.prefill, engine.setup)
        jax.eval_shape(read, *books, (), scalar, prompt, scalar, scalar, key)
        assert shown() == {name for name in FIELDS[asked][1] if name.startswith("new.")}


@pytest.mark.parametrize(
    ("needs", "kind"),
    [
        (Needs(keys=True), "bulk"),
        (Needs(), "one-out"),
        pytest.param(Needs(keys=True), "one-out", marks=pytest.mark.slow),
        pytest.param(Needs(), "bulk", marks=pytest.mark.slow),
    ],
)
def test_look_and_score_run_at_evictions_only_and_once_each(needs, kind):
    calls: collections.Counter[str] = collections.Counter()
    wanted = needs

    class Counting(Policy):
        needs = wanted

        def init(self, shape):
            return jnp.zeros((shape.rows,), jnp.int32)

        def look(self, state, slots):
            jax.debug.callback(lambda: calls.update(["look"]))
            return state + 1

        def score(self, state, slots):
            jax.debug.callback(lambda: calls.update(["score"]))
            return slots.positions.astype(jnp.float32)

    # Policies that read the buffer are called for one row at a time, others once for all rows that evict together.
    batch_size = 3 if needs.buffer else 1
    rule = Retention(BUDGET, RETAIN[kind], WINDOW)
    engine = Engine(model(), policy=Counting(), rule=rule, batch_size=batch_size, eos_ids=())
    short = [Request(r.id, r.prompt_ids, BUDGET + 1 - len(r.prompt_ids)) for r in SHORT]
    assert not [event for event in engine.run(short) if isinstance(event, Completion) and event.evictions]
    jax.effects_barrier()
    assert not calls
    evictions = [event.evictions for event in engine.run(SHORT) if isinstance(event, Completion)]
    jax.effects_barrier()
    assert calls == {"look": sum(evictions), "score": sum(evictions)}
    if batch_size == 1:
        assert engine.state.policy.tolist() == evictions[-1:]  # each row's own look, since its request began
