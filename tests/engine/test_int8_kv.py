"""An int8 KV buffer in the whole engine: the tokens and kept positions of an oracle whose cache is rounded."""

import jax
import numpy as np
import pytest
import torch

from jkv.engine.engine import Engine
from jkv.engine.events import Request
from jkv.load import load
from jkv.ops.buffer import Int8KV
from jkv.policies import KNorm, Retention, SnapKV, Window
from jkv.policies.base import Policy
from tests.support.oracle import NewestFirst, Oracle, Row, Scorer
from tests.support.tiny import FAMILY, Tiny, complete, prompts


def rounded(x: torch.Tensor) -> torch.Tensor:
    """What 127 steps of each slot's and head's largest magnitude make of it."""
    step = x.abs().amax(dim=-1, keepdim=True) * np.float32(1 / 127)
    return torch.round(x * (1 / step)) * step


class LargeKeysGo(Scorer):
    """The knorm policy."""

    def score(self, row: Row, layer: int, head: int) -> np.ndarray:
        return -np.linalg.norm(row.keys(layer, head), axis=1)


# tiny model, policy, its oracle, rule, length of a prompt that is read in pieces (0: all are read whole)
CASES = {
    "window": (FAMILY[0], Window(), NewestFirst, Retention(32, 24, 4), 0),
    "knorm, one out, per head": (FAMILY[3], KNorm(), LargeKeysGo, Retention(32, 31, 4, 0, False, "head"), 0),
    "knorm, long prompt": (FAMILY[4], KNorm(), LargeKeysGo, Retention(32, 26, 4, 0, False, "shared", True), 45),
    "window, one KV head": (FAMILY[2], Window(), NewestFirst, Retention(32, 20, 4), 0),
}
PLAIN = ("window",)


@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=() if name in PLAIN else pytest.mark.slow) for name in CASES]
)
def test_tokens_and_kept_positions_are_those_of_a_rounded_cache(case, tmp_path):
    tiny: Tiny
    policy: Policy
    tiny, policy, scorer, rule, long = CASES[case]
    reference = tiny.save(tmp_path)
    requests = [Request(f"r{i}", prompt, 60) for i, prompt in enumerate(prompts(5, long or 20, 13))]
    model = load(tmp_path, "float32").model
    engine = Engine(model, policy=policy, rule=rule, batch_size=2, eos_ids=(), kv="int8")
    c, exact = model.config, 0
    exact = c.n_layers * 2 * c.n_kv_heads * 32 * (c.head_dim + 4) * 2
    assert engine.kv_bytes == c.kv_bytes(2, 32, 4, "int8") == exact
    done, evictions = complete(engine, requests, trace=True)
    assert engine.traces["decode"] == 1
    assert engine.kv_bytes == exact
    assert engine.compiled_decode.memory_analysis().alias_size_in_bytes >= exact
    layer = engine.state.cache.layers[0]
    assert isinstance(layer.k, Int8KV)
    assert [leaf.dtype.name for leaf in jax.tree.leaves(layer.v)] == ["int8", "float32"]

    moved = False
    for request in requests:
        words = (rule.budget, rule.retain, rule.window, rule.sinks, rule.pin_prompt, rule.granularity == "head")
        tokens, kept, logits = Oracle(reference, *words, rounded).run(request.prompt_ids, 60, scorer())
        assert len(kept) >= 3
        assert [e.kept for e in evictions[request.id]] == kept
        assert done[request.id].token_ids == tokens
        *_, unrounded = Oracle(reference, *words).run(request.prompt_ids, 60, scorer())
        moved |= float(np.abs(logits[1] - unrounded[1]).max()) > 1e-4
    assert moved  # rounding is there to be seen


@pytest.mark.slow
def test_policies_that_look_at_the_buffer_see_numbers(tmp_path):
    """snapkv reads keys: with int8 they are floats again, a row at a time."""
    FAMILY[0].save(tmp_path)
    requests = [Request(f"r{i}", prompt, 50) for i, prompt in enumerate(prompts(5, 20))]
    runs = []
    for kv in (None, "int8"):
        model = load(tmp_path, "float32").model
        engine = Engine(model, policy=SnapKV(), rule=Retention(32, 24, 4), batch_size=2, eos_ids=(), kv=kv)
        done, _ = complete(engine, requests)
        runs.append([done[request.id] for request in requests])
    for plain, int8 in zip(*runs, strict=True):
        assert int8.evictions == plain.evictions >= 3
        assert len(int8.kept) == len(plain.kept)
        # Scores move by a percent or so: most of what stays is the same.
        assert len(set(int8.kept) & set(plain.kept)) > len(plain.kept) / 2
