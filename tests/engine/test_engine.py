"""The engine's promises: one compilation, exact bytes, independent rows, no stray read, nothing left behind."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jkv.engine.engine import Engine
from jkv.engine.events import Completion, Progress, Request
from jkv.engine.programs import prefill_bucket
from jkv.engine.sampling import Greedy, TopPTopK
from jkv.errors import UserError
from jkv.models import Decoder
from jkv.models.config import ModelConfig
from jkv.policies import Full, Needs, Policy, Random, Retention, Streaming, Window
from tests.support.tiny import complete, prompts

CONFIG = ModelConfig("qwen3", 97, 40, 72, 2, 6, 2, 12, 1e4, qk_norm=True, qkv_bias=True, eos_ids=(2,))


@pytest.fixture(scope="module")
def model() -> Decoder:
    model = Decoder(CONFIG, rngs=nnx.Rngs(0))
    model.embed[...] = model.embed[...] * 30
    return model


def requests(*lengths: int, new_tokens: int = 50) -> list[Request]:
    return [Request(f"r{i}", p, new_tokens + 7 * i) for i, p in enumerate(prompts(*lengths))]


def tokens_of(engine: Engine, todo: list[Request]) -> dict[str, list[int]]:
    return {id: c.token_ids for id, c in complete(engine, todo)[0].items()}


@pytest.mark.slow
def test_rows_are_independent_of_batch_size_row_and_neighbours(model, as_users_do):
    todo = requests(5, 20, 9, 13, 7, 3, 16, 11, 4)
    runs = []
    for batch_size, order in ((1, todo), (3, todo), (8, todo), (3, todo[::-1]), (33, todo)):
        engine = Engine(
            model, policy=Random(), rule=Retention(32, 26, 4, 0, True), batch_size=batch_size,
            sampler=TopPTopK(0.9, 0.95, 20), eos_ids=(2,), seed=3,
        )  # fmt: skip
        runs.append(tokens_of(engine, order))
        assert engine.traces["decode"] == 1
    assert all(run == runs[0] for run in runs)


@pytest.mark.slow
def test_logits_are_bit_equal_at_any_batch_size(model, as_users_do):
    @dataclasses.dataclass(frozen=True)
    class Recording:
        sink: list = dataclasses.field(compare=False)

        def __call__(self, logits, keys):
            jax.debug.callback(lambda x: self.sink.append(np.asarray(x)), logits, ordered=True)
            return Greedy()(logits, keys)

    per_batch = []
    for batch_size in (1, 2, 5, 33):
        sink = []
        others = [Request(f"o{i}", p, 30) for i, p in enumerate(prompts(*[6] * (batch_size - 1), seed=5))]
        engine = Engine(
            model,
            policy=Window(),
            rule=Retention(24, 20, 4),
            batch_size=batch_size,
            sampler=Recording(sink),
            eos_ids=(),
        )
        complete(engine, [*others, Request("r", tuple(range(3, 12)), 30)])
        jax.effects_barrier()
        per_batch.append(np.stack([x[-1] for x in sink[batch_size - 1 :]]))
    for other in per_batch[1:]:
        np.testing.assert_array_equal(per_batch[0].view(np.uint32), other.view(np.uint32))


def test_long_run_with_refills_is_one_compilation_and_exact_bytes(model):
    engine = Engine(model, policy=Window(), rule=Retention(32, 28, 4), batch_size=4, eos_ids=())
    exact = CONFIG.n_layers * 4 * CONFIG.n_kv_heads * 32 * CONFIG.head_dim * 2 * 4
    assert engine.kv_bytes == CONFIG.kv_bytes(4, 32, 4) == exact
    total = 0
    for event in engine.run([Request(f"r{i}", p, 100) for i, p in enumerate(prompts(*[5, 9, 30, 12] * 3))]):
        assert engine.kv_bytes == exact
        if isinstance(event, Completion):
            total += len(event.token_ids)
            assert event.peak_slots <= 32
    assert total == 1200
    assert engine.traces == {"decode": 1, "prefill 32": 1}
    # A second run of the same engine starts clean and compiles nothing.
    again = tokens_of(engine, requests(5, 9))
    fresh = tokens_of(
        Engine(model, policy=Window(), rule=Retention(32, 28, 4), batch_size=2, eos_ids=()), requests(5, 9)
    )
    assert again == fresh
    assert engine.traces == {"decode": 1, "prefill 32": 1}


def test_a_run_left_half_way_leaves_no_row_at_work(model):
    engine = Engine(model, policy=Full(), rule=Retention(160, 160), batch_size=2, eos_ids=(), steps_per_call=8)
    next(engine.run(requests(5, 9)))
    ticks = [event for event in engine.run(requests(4)) if isinstance(event, Progress)]
    assert max(tick.active_rows for tick in ticks) == 1


def test_eos_ends_a_row_and_the_next_request_takes_it(model):
    engine = Engine(model, policy=Full(), rule=Retention(160, 160), batch_size=1, eos_ids=())
    free = tokens_of(engine, requests(5, 9))
    eos = free["r0"][10]
    stopping = Engine(model, policy=Full(), rule=Retention(160, 160), batch_size=1, eos_ids=(eos,))
    done, _ = complete(stopping, requests(5, 9))
    for id, tokens in free.items():
        cut = tokens.index(eos) + 1 if eos in tokens else len(tokens)
        assert done[id].token_ids == tokens[:cut]
        assert done[id].finish == ("eos" if eos in tokens else "length")


def test_no_kv_sized_copy_and_the_buffer_is_updated_in_place(model, as_users_do):
    for policy, rule in (
        (Window(), Retention(32, 24, 4)),
        (Random(), Retention(32, 31, 4)),
        (Full(), Retention(32, 32)),
    ):
        engine = Engine(model, policy=policy, rule=rule, batch_size=4, eos_ids=())
        engine.compile([8])
        compiled = engine.compiled_decode
        buffer = f"f32[4,{CONFIG.n_kv_heads},32,{CONFIG.head_dim}]"
        copies = [
            line for line in compiled.as_text().splitlines() if re.search(r"= \S+ copy\(", line) and buffer in line
        ]
        assert not copies
        analysis = compiled.memory_analysis()
        assert analysis.alias_size_in_bytes >= engine.kv_bytes


def test_evictions_of_a_trace_are_what_each_rule_says(model):
    for retain in (24, 31):
        engine = Engine(model, policy=Streaming(), rule=Retention(32, retain, 4, 4), batch_size=2, eos_ids=())
        done, evictions = complete(engine, requests(5, 20, 9), trace=True)
        for id, events in evictions.items():
            assert [e.event for e in events] == list(range(done[id].evictions))
            for e in events:
                assert e.kept == sorted(set(e.kept))
                assert len(e.kept) == retain
                assert e.kept[-4:] == list(range(e.position - 3, e.position + 1))
                assert e.kept[:4] == [0, 1, 2, 3]
        without, _ = complete(engine, requests(5, 20, 9))
        assert {k: v.token_ids for k, v in without.items()} == {k: v.token_ids for k, v in done.items()}


@dataclasses.dataclass(frozen=True)
class Curious(Policy):
    """Asks for everything and checks it against the buffer's books; keeps the newest."""

    name = "curious"
    needs = Needs(queries=3, attention=True, keys=True, values=True, hidden=True, tokens=True)

    def init(self, shape):
        return {"mass": shape.per_slot(), "hidden": shape.per_slot(), "born": shape.per_slot(jnp.int32)}

    def observe(self, state, new):
        assert new.attention is not None and new.hidden is not None  # noqa: PT018
        given = jnp.where(new.valid[:, None, :, None], jnp.mean(jnp.stack(new.attention), axis=0), 0.0)
        return {
            "mass": state["mass"] + jnp.sum(given, axis=(1, 2))[:, None, None, :],
            "hidden": new.write(state["hidden"], new.hidden[:, None, None, :, 0]),
            "born": new.write(state["born"], new.position[:, None, None, :]),
        }

    def score(self, state, slots):
        # What follows the slots must still agree with them after many evictions; disagreement shows as a NaN score.
        same = jnp.all(jnp.where(slots.occupied[:, None, None], state["born"] == slots.positions, True))
        return jnp.where(same, slots.positions.astype(jnp.float32), jnp.nan)


@pytest.mark.parametrize("retain", [24, pytest.param(31, marks=pytest.mark.slow)])
def test_what_a_policy_asks_for_follows_its_slots(model, retain):
    rule = Retention(32, retain, 4)
    todo = requests(5, 20)
    seen = Engine(model, policy=Curious(), rule=rule, batch_size=2, eos_ids=())
    plain = Engine(model, policy=Window(), rule=rule, batch_size=2, eos_ids=())
    assert tokens_of(seen, todo) == tokens_of(plain, todo)
    state = seen.state
    for row, request in enumerate(todo):
        n = int(state.cache.length[row])
        positions = np.asarray(state.cache.positions[row, 0, 0, :n])
        np.testing.assert_array_equal(state.policy["born"][row, 0, 0, :n], positions)
        order = np.argsort(positions)
        tokens = [*request.prompt_ids, *tokens_of(plain, [request])[request.id]]
        assert state.slot_tokens is not None
        np.testing.assert_array_equal(
            np.asarray(state.slot_tokens[row, 0, 0, :n])[order], np.asarray(tokens)[positions[order]]
        )
        # Each query (every head's average) hands out a mass of 1, to live slots only.
        assert (np.asarray(state.policy["mass"][row, 0, 0, :n]) > 0).all()


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ((), "empty"),
        ((1, 97), "97 is outside the vocabulary of 97"),
        ((-1,), "outside"),
        (tuple([3] * 33), "budget 32"),
    ],
)
def test_bad_prompts_are_refused_before_anything_runs(model, prompt, message):
    engine = Engine(model, policy=Window(), rule=Retention(32, 24, 4), batch_size=1)
    with pytest.raises(UserError, match=message):
        list(engine.run([*requests(5), Request("bad", prompt, 4)]))


def test_the_full_policy_says_what_does_not_fit(model):
    engine = Engine(model, policy=Full(), rule=Retention(32, 32), batch_size=1)
    with pytest.raises(UserError, match="evicts nothing"):
        engine.check(Request("r", (1, 2, 3), 31))
    engine.check(Request("r", (1, 2, 3), 30))


def test_samples_of_a_problem_differ(model):
    (prompt,) = prompts(5)
    engine = Engine(
        model, policy=Full(), rule=Retention(64, 64), batch_size=3, sampler=TopPTopK(1.0), eos_ids=(), seed=3
    )
    todo = [Request("r", prompt, 20, sample) for sample in range(3)]
    drawn = {tuple(event.token_ids) for event in engine.run(todo) if isinstance(event, Completion)}
    assert len(drawn) == 3


def test_every_prompt_fits_its_bucket(model):
    engine = Engine(model, policy=Window(), rule=Retention(48, 40, 4, long_prompts=True), batch_size=1)
    for length in range(1, 200):
        assert prefill_bucket(engine.setup, length) >= length
