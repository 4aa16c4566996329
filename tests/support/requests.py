"""Random prompts, and an engine's events by request. Without transformers, whose import takes seconds."""

import numpy as np

from jkv.engine.engine import Engine
from jkv.engine.events import Completion, Eviction, Request


def prompts(*lengths: int, seed: int = 0, vocabulary: int = 97) -> list[tuple[int, ...]]:
    """Random prompts that avoid the special tokens."""
    rng = np.random.default_rng(seed)
    return [tuple(int(t) for t in rng.integers(3, vocabulary, n)) for n in lengths]


def complete(
    engine: Engine, requests: list[Request], *, trace: bool = False
) -> tuple[dict[str, Completion], dict[str, list[Eviction]]]:
    """Run requests; completions and evictions by request id."""
    done: dict[str, Completion] = {}
    evictions: dict[str, list[Eviction]] = {request.id: [] for request in requests}
    for event in engine.run(requests, trace=trace):
        if isinstance(event, Completion):
            done[event.request.id] = event
        elif isinstance(event, Eviction):
            evictions[event.request.id].append(event)
    return done, evictions
