"""An oracle for decoding within a budget: transformers' eager attention over growing Python lists, one row at a time.

It shares no code with jkv. The cache is a list of positions per keep set and a list of key and value vectors per layer
and head; evicting is deleting from lists.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
from transformers import DynamicCache

# (layer, head, positions held, newest position) -> score of each
Score = Callable[[int, int, list[int], int], list[float]]


def newest_first(layer: int, head: int, positions: list[int], newest: int) -> list[float]:
    """The window and streaming policies."""
    return [float(p) for p in positions]


def uniform_draws(seed: int, id: str, sample: int, n_heads: int, per_head: bool) -> Score:
    """The random policy: the documented derivation of its draws, spelled out with JAX's own functions."""
    digest = hashlib.blake2b(f"{seed}\0{id}\0{sample}".encode(), digest_size=8).digest()
    raw = np.frombuffer(digest, dtype="<u4").astype(np.uint32)
    eviction_stream = jax.random.fold_in(jax.random.wrap_key_data(jax.numpy.asarray(raw), impl="threefry2x32"), 1)

    def score(layer: int, head: int, positions: list[int], newest: int) -> list[float]:
        keep_set = layer * n_heads + head if per_head else 0
        key = jax.random.fold_in(jax.random.fold_in(eviction_stream, newest), keep_set)
        return [float(jax.random.uniform(jax.random.fold_in(key, p))) for p in positions]

    return score


@dataclasses.dataclass
class Oracle:
    """Greedy decoding of one prompt. budget, retain, window, sinks, pin_prompt: as in jkv; per_head: granularity."""

    model: Any
    budget: int
    retain: int
    window: int = 0
    sinks: int = 0
    pin_prompt: bool = False
    per_head: bool = False

    def run(
        self, prompt: tuple[int, ...], new_tokens: int, score: Score
    ) -> tuple[list[int], list[list], list[np.ndarray]]:
        """Tokens, what was kept at each eviction ([n], or [layer][head][n]), and the logits behind every token."""
        config = self.model.config
        layers, heads = config.num_hidden_layers, config.num_key_value_heads
        self.vectors = [[([], []) for _ in range(heads)] for _ in range(layers)]
        self.held = [[[] for _ in range(heads)] for _ in range(layers)]
        logits = self._forward(list(prompt), list(range(len(prompt))))
        tokens, kept, all_logits = [int(logits.argmax())], [], [logits]
        for position in range(len(prompt), len(prompt) + new_tokens - 1):
            if len(self.held[0][0]) == self.budget:
                self._evict(len(prompt), position - 1, score)
                kept.append(
                    [[sorted(h) for h in layer] for layer in self.held] if self.per_head else sorted(self.held[0][0])
                )
            logits = self._forward([tokens[-1]], [position])
            tokens.append(int(logits.argmax()))
            all_logits.append(logits)
        return tokens, kept, all_logits

    def _evict(self, prompt_length: int, newest: int, score: Score) -> None:
        for layer, heads in enumerate(self.held):
            for head, positions in enumerate(heads):
                scores = score(layer, head, positions, newest)
                ranked = []
                for value, position in zip(scores, positions, strict=True):
                    safe = position > newest - self.window or position < self.sinks
                    safe = safe or (self.pin_prompt and position < prompt_length)
                    ranked.append((math.inf if safe else value, position))
                keep = {position for _, position in sorted(ranked)[len(ranked) - self.retain :]}
                places = [i for i, position in enumerate(positions) if position in keep]
                keys, values = self.vectors[layer][head]
                self.vectors[layer][head] = ([keys[i] for i in places], [values[i] for i in places])
                heads[head] = [positions[i] for i in places]

    @torch.no_grad()
    def _forward(self, tokens: list[int], positions: list[int]) -> np.ndarray:
        cache = DynamicCache()
        past = len(self.held[0][0])
        if past:
            for index, layer in enumerate(self.vectors):
                keys = torch.stack([torch.stack(k) for k, _ in layer])[None]
                values = torch.stack([torch.stack(v) for _, v in layer])[None]
                cache.update(keys, values, index)
        out = self.model(
            input_ids=torch.tensor([tokens]),
            position_ids=torch.tensor([positions]),
            past_key_values=cache,
            use_cache=True,
        )
        for index, layer in enumerate(self.vectors):
            held: Any = cache.layers[index]
            for head, (keys, values) in enumerate(layer):
                keys.extend(held.keys[0, head, past:])
                values.extend(held.values[0, head, past:])
                self.held[index][head].extend(positions)
        return out.logits[0, -1].numpy()
