"""The README's policy, copied from the README: registered, run in an engine, and keeping what it says it keeps."""

import pathlib
import re

import numpy as np
from flax import nnx

from jkv.engine.engine import Engine
from jkv.engine.events import Request
from jkv.models import Decoder
from jkv.models.config import ModelConfig
from jkv.policies import Retention, get_policy
from tests.support.tiny import prompts

README = pathlib.Path(__file__).parents[2] / "README.md"


def test_the_readmes_policy_keeps_the_smallest_keys():
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    exec(code, {"__name__": "readme"})
    policy = get_policy("small-keys")()
    config = ModelConfig("llama", 97, 40, 72, 2, 4, 2, 12, 1e4)
    model = Decoder(config, rngs=nnx.Rngs(0))
    (prompt,) = prompts(10)

    # One row whose buffer is full and has not evicted yet: the norms are there to be looked at.
    engine = Engine(model, policy=policy, rule=Retention(24, 16, 3), batch_size=1, eos_ids=(), steps_per_call=14)
    list(engine.run([Request("r", prompt, 15)]))
    assert int(engine.state.cache.length[0]) == 24
    assert int(engine.state.evictions[0]) == 0
    norms = np.mean([np.linalg.norm(x, axis=-1) for x in engine.state.cache.row(0).k], axis=(0, 1))
    smallest = sorted(range(21), key=lambda position: norms[position])[:13]

    traced = Engine(model, policy=policy, rule=Retention(24, 16, 3), batch_size=1, eos_ids=())
    kept = [event.kept for event in traced.run([Request("r", prompt, 17)], trace=True) if hasattr(event, "event")]
    assert kept == [sorted([*smallest, 21, 22, 23])]
