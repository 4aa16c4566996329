"""Against transformers, float32, on checkpoints that transformers wrote."""

import dataclasses

import jax
import numpy as np
import pytest

from jkv.engine.engine import Engine
from jkv.engine.events import Request
from jkv.load import load
from jkv.policies import Full, Retention
from tests.support.oracle import NewestFirst, Oracle
from tests.support.tiny import FAMILY, Tiny, complete, prompts


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
