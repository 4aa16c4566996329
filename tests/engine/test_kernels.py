"""The whole decode loop with the TPU kernels, on a simulated TPU: the tokens and the kept positions are XLA's."""

import pytest
from flax import nnx
from jax.experimental.pallas import tpu as pltpu

from jkv.engine.engine import Engine
from jkv.engine.events import Request
from jkv.models import Decoder
from jkv.models.config import ModelConfig
from jkv.ops import dispatch
from jkv.policies import Retention, get_policy
from tests.support.kernels import INTERPRET
from tests.support.tiny import complete, prompts

CONFIG = ModelConfig("qwen3", 97, 40, 72, 2, 6, 2, 12, 1e4, qk_norm=True, qkv_bias=True)


def _run(policy, rule, implementation, kv=None):
    model = Decoder(CONFIG, rngs=nnx.Rngs(0))
    model.embed[...] = model.embed[...] * 30
    engine = Engine(model, policy=policy, rule=rule, batch_size=2, eos_ids=(), implementation=implementation, kv=kv)
    requests = [Request(str(i), prompt, 16) for i, prompt in enumerate(prompts(5, 11, 8))]
    done, evictions = complete(engine, requests, trace=True)
    assert engine.traces["decode"] == 1
    return {key: (value.token_ids, value.kept, evictions[key]) for key, value in done.items()}


@pytest.mark.parametrize(
    ("policy", "retain", "granularity", "kv"),
    [
        pytest.param("rkv", 13, "head", None, marks=pytest.mark.slow),
        pytest.param("rkv", 13, "shared", "int8", marks=pytest.mark.slow),
    ],
)
def test_the_kernels_decode_as_xla_does(policy, retain, granularity, kv, as_users_do):
    rule = Retention(16, retain, window=4, sinks=1, granularity=granularity)
    expected = _run(get_policy(policy)(), rule, "xla", kv)
    assert all(len(evictions) >= 2 for _, _, evictions in expected.values())
    with dispatch.target("tpu"), pltpu.force_tpu_interpret_mode(INTERPRET):
        assert _run(get_policy(policy)(), rule, "auto", kv) == expected  # H = 12: all kernels but prefill's
