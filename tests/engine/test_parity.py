"""Against transformers, float32, on checkpoints that transformers wrote."""

import dataclasses

import jax
import numpy as np
import pytest

from jkv.engine.engine import Engine
from jkv.engine.events import Request
from jkv.load import load
from jkv.policies import Full, Random, Retention, Streaming, Window
from tests.engine.oracle import NewestFirst, Oracle, UniformDraws
from tests.tiny import FAMILY, Tiny, complete, prompts


@dataclasses.dataclass(frozen=True)
class RecordingGreedy:
    """Greedy, and hands every step's logits to a list."""

    sink: list = dataclasses.field(compare=False)

    def __call__(self, logits, keys):
        del keys
        jax.debug.callback(lambda x: self.sink.append(np.asarray(x)), logits, ordered=True)
        return jax.numpy.argmax(logits, axis=-1).astype(jax.numpy.int32)


QUICK = ("llama3-g4", "qwen2-g7")


@pytest.mark.parametrize(
    "tiny", [pytest.param(t, marks=[] if t.name in QUICK else pytest.mark.slow, id=t.name) for t in FAMILY]
)
def test_logits_and_200_greedy_tokens_equal_transformers(tiny: Tiny, tmp_path):
    reference = tiny.save(tmp_path)
    (prompt,) = prompts(11)
    sink: list[np.ndarray] = []
    engine = Engine(
        load(tmp_path, "float32").model, policy=Full(), rule=Retention(256, 256), batch_size=1, eos_ids=(),
        sampler=RecordingGreedy(sink),
    )  # fmt: skip
    done, _ = complete(engine, [Request("r", prompt, 200)])
    jax.effects_barrier()

    tokens, _, logits = Oracle(reference, 10_000, 10_000).run(prompt, 200, NewestFirst())
    assert done["r"].token_ids == tokens
    assert len(sink) == len(logits) == 200
    worst = max(float(np.abs(ours[0] - theirs).max()) for ours, theirs in zip(sink, logits, strict=True))
    assert worst < 1e-4
    assert np.abs(logits[0]).max() > 1  # the comparison is of something


RULES = {
    "window-bulk": (Window(), Retention(32, 24, 4)),
    "window-one-out": (Window(), Retention(32, 31, 4)),
    "streaming-bulk": (Streaming(), Retention(32, 24, 4, 4)),
    "streaming-one-out": (Streaming(), Retention(32, 31, 4, 4)),
    "random-pinned-bulk": (Random(), Retention(32, 26, 4, 0, True)),
    "random-bulk": (Random(), Retention(32, 20, 4, 2)),
    "random-pinned-one-out": (Random(), Retention(32, 31, 4, 0, True)),
    "random-head-bulk": (Random(), Retention(32, 24, 4, 0, True, "head")),
    "random-head-one-out": (Random(), Retention(32, 31, 4, 0, True, "head")),
}


THREE = (FAMILY[0], FAMILY[2], FAMILY[4])
# Plain and slow runs see each rule on one of the models, in turn (tests/policies/test_oracle.py has every policy).
EVERY = [
    pytest.param(
        tiny, rule, id=f"{tiny.name}-{name}",
        marks=pytest.mark.exhaustive if place % 3 != i else [] if place % 4 == 0 else pytest.mark.slow,
    )
    for i, tiny in enumerate(THREE)
    for place, (name, rule) in enumerate(RULES.items())
]  # fmt: skip


@pytest.mark.parametrize(("tiny", "rule"), EVERY)
def test_kept_positions_and_tokens_equal_the_oracle(tiny: Tiny, rule, tmp_path):
    policy, retention = rule
    reference = tiny.save(tmp_path)
    requests = [Request(f"r{i}", prompt, 80) for i, prompt in enumerate(prompts(5, 20, 13))]
    engine = Engine(load(tmp_path, "float32").model, policy=policy, rule=retention, batch_size=3, eos_ids=(), seed=7)
    done, evictions = complete(engine, requests, trace=True)
    per_head = retention.granularity == "head"
    for request in requests:
        scorer = UniformDraws(7, request.id) if isinstance(policy, Random) else NewestFirst()
        oracle = Oracle(
            reference,
            retention.budget,
            retention.retain,
            retention.window,
            retention.sinks,
            retention.pin_prompt,
            per_head,
        )
        tokens, kept, _ = oracle.run(request.prompt_ids, 80, scorer)
        assert len(kept) >= 4
        assert [e.kept for e in evictions[request.id]] == kept
        assert done[request.id].token_ids == tokens
        assert done[request.id].evictions == len(kept)
        assert done[request.id].peak_slots == retention.budget
    assert engine.traces["decode"] == 1
