"""4,000 tokens and more at budget 128 with refills: one compilation, the exact buffer, flat process memory."""

import psutil
import pytest

from jkv.engine.engine import Engine
from jkv.engine.events import Completion, Progress, Request
from jkv.engine.sampling import TopPTopK
from jkv.load import load
from jkv.policies import Random, Retention
from jkv.tasks import load_task


@pytest.mark.slow
def test_memory_stays_flat_over_many_refills(as_users_do):
    loaded = load("demo-llama", "float32")
    config = loaded.config
    engine = Engine(
        loaded.model, policy=Random(), rule=Retention(128, 112, 16, 0, True), batch_size=4, eos_ids=(),
        sampler=TopPTopK(0.6, 0.95, 20),
    )  # fmt: skip
    exact = config.n_layers * 4 * config.n_kv_heads * 128 * config.head_dim * 2 * 4
    requests = [
        Request(p.id, p.prompt_ids, 1000) for p in load_task("demo", loaded.tokenizer, model=loaded.name, limit=24)
    ]
    process, memory, tokens, evictions = psutil.Process(), [], 0, 0
    for event in engine.run(requests):
        if isinstance(event, Progress):
            assert engine.kv_bytes == exact
            tokens = event.tokens
            if tokens > 4000:  # warm-up: both programs and the allocator's pools are there
                memory.append(process.memory_info().rss)
        elif isinstance(event, Completion):
            evictions += event.evictions
            assert event.peak_slots == 128
    assert tokens == 24_000
    assert evictions > 24 * 50
    assert engine.traces["decode"] == 1
    assert max(memory) < 1.05 * memory[0]
