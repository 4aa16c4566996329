"""An oracle for decoding within a budget: transformers' eager attention over growing Python lists, one row at a time.

It shares no code with jkv. The cache is a list of positions, keys and values per layer and head; evicting is deleting
from lists. What policies score by is taken from transformers' own modules as they run.

Float32 leaves the last digits of a score to chance. An oracle knows how close its closest decision was, so that a test
can take prompts whose decisions don't hang on rounding.
"""

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import torch
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb


@dataclasses.dataclass
class Oracle:
    """Greedy decoding of one prompt. budget, retain, window, sinks, pin_prompt: as in jkv; per_head: granularity.

    stored: what the cache makes of keys or values [.., H]. A token that is put in alone meets itself as it is stored;
    the tokens of a prompt meet each other as they are.

    closest: how far apart, relative to their size, the two numbers were that the last run's closest decision hung on.
    """

    model: Any
    budget: int
    retain: int
    window: int = 0
    sinks: int = 0
    pin_prompt: bool = False
    per_head: bool = False
    stored: Callable[[torch.Tensor], torch.Tensor] = lambda x: x
    closest: float = math.inf

    def run(
        self, prompt: tuple[int, ...], new_tokens: int, scorer: "Scorer"
    ) -> tuple[list[int], list[list], list[np.ndarray]]:
        """Tokens, what was kept at each eviction ([n], or [layer][head][n]), and the logits behind every token.

        A prompt longer than the budget is put in token by token, evicting as decoding does.
        """
        row, self.closest = Row(self, len(prompt)), math.inf
        pieces = [list(prompt)] if len(prompt) <= self.budget else [[token] for token in prompt]
        tokens, kept, all_logits = [], [], []
        while len(tokens) < new_tokens:
            if len(row.held[0][0]) == self.budget:
                self._evict(row, scorer)
                kept.append(
                    [[sorted(h) for h in layer] for layer in row.held] if self.per_head else sorted(row.held[0][0])
                )
            logits = row.put_in(pieces.pop(0) if pieces else [tokens[-1]], scorer)
            if not pieces:
                tokens.append(int(logits.argmax()))
                all_logits.append(logits)
                self.decide(*np.sort(logits)[-2:])
        return tokens, kept, all_logits

    def decide(self, one: Any, other: Any) -> None:
        """Note that a decision hangs on which of two numbers (or of each two) is larger. Equal ones tie by rule."""
        one, other = np.broadcast_arrays(np.asarray(one, float), np.asarray(other, float))
        counts = np.isfinite(one) & np.isfinite(other) & (one != other)
        one, other = one[counts], other[counts]
        gaps = np.abs(one - other) / np.maximum(np.abs(one), np.abs(other))
        self.closest = min(self.closest, float(gaps.min(initial=math.inf)))

    def _evict(self, row: "Row", scorer: "Scorer") -> None:
        scorer.look(row)
        scores = {(layer, head): scorer.score(row, layer, head) for layer, head in row.heads}
        if not self.per_head:
            scores = dict.fromkeys(row.heads, np.mean(list(scores.values()), axis=0))
        for layer, head in row.heads:
            ranked = []
            for score, position in zip(scores[layer, head], row.held[layer][head], strict=True):
                assert not math.isnan(score)
                safe = position > row.newest - self.window or position < self.sinks
                safe = safe or (self.pin_prompt and position < row.prompt_length)
                ranked.append((safe, score, position))
            ranked.sort()
            (_, best_out, _), (safe, worst_in, _) = ranked[-self.retain - 1], ranked[-self.retain]
            if not safe:
                self.decide(best_out, worst_in)
            row.keep(layer, head, {position for _, _, position in ranked[-self.retain :]})


class Row:
    """One row: what it holds by layer and KV head, and all that ever passed through it by layer and position."""

    def __init__(self, rule: Oracle, prompt_length: int):
        self.rule, self.model, self.prompt_length = rule, rule.model, prompt_length
        config = self.model.config
        self.n_layers, self.n_heads, self.head_dim = (
            config.num_hidden_layers,
            config.num_key_value_heads,
            config.head_dim,
        )
        self.group = config.num_attention_heads // self.n_heads
        self.heads = [(layer, head) for layer in range(self.n_layers) for head in range(self.n_heads)]
        lists = lambda: [[[] for _ in range(self.n_heads)] for _ in range(self.n_layers)]
        self.held: list[list[list[int]]] = lists()
        self.cached_keys, self.cached_values = lists(), lists()
        self.tokens: list[int] = []
        self.hidden: list[np.ndarray] = []  # after the final norm
        by_layer = lambda: [[] for _ in range(self.n_layers)]
        self.inputs: list[list[np.ndarray]] = by_layer()  # what enters a layer's attention
        self.queries_before, self.queries, self.keys_before = by_layer(), by_layer(), by_layer()  # before, after RoPE

    @property
    def newest(self) -> int:
        """The position of the newest token."""
        return len(self.tokens) - 1

    def positions(self, layer: int, head: int) -> np.ndarray:
        return np.array(self.held[layer][head])

    def keys(self, layer: int, head: int) -> np.ndarray:
        """[slots, H] as cached, after RoPE."""
        return torch.stack(self.cached_keys[layer][head]).double().numpy()

    def values(self, layer: int, head: int) -> np.ndarray:
        return torch.stack(self.cached_values[layer][head]).double().numpy()

    def query_heads(self, head: int) -> slice:
        """The query heads that share a KV head."""
        return slice(head * self.group, (head + 1) * self.group)

    def rotation(self, positions: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Cosines and sines [positions, H] that queries and keys are turned by, RoPE's own scaling included."""
        cos, sin = self.model.model.rotary_emb(torch.zeros(1), torch.tensor([list(positions)]))
        return cos[0].double().numpy(), sin[0].double().numpy()

    def keep(self, layer: int, head: int, positions: set[int]) -> None:
        places = [i for i, position in enumerate(self.held[layer][head]) if position in positions]
        for lists in (self.held, self.cached_keys, self.cached_values):
            lists[layer][head] = [lists[layer][head][i] for i in places]

    @functools.cached_property
    def cache_name(self) -> str:
        """What the model calls its cache: transformers 5.24 renamed it."""
        return "cache" if "cache" in inspect.signature(self.model.forward).parameters else "past_key_values"

    @torch.no_grad()
    def put_in(self, tokens: list[int], scorer: "Scorer") -> np.ndarray:
        """Run tokens through the model and show them to the policy. The last one's logits."""
        cache, past, first = DynamicCache(), len(self.held[0][0]), len(self.tokens)
        if past:
            for layer in range(self.n_layers):
                stacked = [
                    torch.stack([torch.stack(x) for x in c[layer]]) for c in (self.cached_keys, self.cached_values)
                ]
                cache.update(stacked[0][None], stacked[1][None], layer)
        stored, alone = self.rule.stored, len(tokens) == 1
        if alone:
            update = cache.update
            cache.update = lambda k, v, *rest, **named: update(stored(k), stored(v), *rest, **named)
        positions = list(range(first, first + len(tokens)))
        with _watched(self.model) as seen:
            out = self.model(
                input_ids=torch.tensor([tokens]), position_ids=torch.tensor([positions]), use_cache=True,
                output_attentions=True, **{self.cache_name: cache},
            )  # fmt: skip
        self.tokens += tokens
        self.hidden.extend(seen["hidden"][0].double().numpy())
        for layer in range(self.n_layers):
            self._remember(layer, seen)
            new: Any = cache.layers[layer]
            for head in range(self.n_heads):
                for held, found in ((self.cached_keys, new.keys), (self.cached_values, new.values)):
                    fresh = found[0, head, past:]
                    held[layer][head].extend(fresh if alone else stored(fresh))
                self.held[layer][head].extend(positions)
        for index, position in enumerate(positions):
            # Each token sees what is held up to itself.
            weights = [a[0, :, index, : past + index + 1].double().numpy() for a in out.attentions]
            scorer.watch(self, position, weights)
        return out.logits[0, -1].numpy()

    def _remember(self, layer: int, seen: dict) -> None:
        by_head = lambda x: x.reshape(1, -1, x.numel() // x.shape[1] // self.head_dim, self.head_dim).transpose(1, 2)
        queries, keys = by_head(seen["query", layer]), by_head(seen["key", layer])
        turned, _ = apply_rotary_pos_emb(queries, keys, *seen["rotation"])
        for memory, x in (
            (self.queries_before, queries), (self.keys_before, keys), (self.queries, turned),
        ):  # fmt: skip
            memory[layer].extend(x[0].transpose(0, 1).double().numpy())
        self.inputs[layer].extend(seen["input", layer][0].double().numpy())


class Scorer:
    """A policy. What it remembers it keeps by position, so that nothing has to move at an eviction."""

    def watch(self, row: Row, position: int, attention: list[np.ndarray]) -> None:
        """Called for every token put in. attention: of its query, per layer [N, slots], in the order of row.held."""

    def look(self, row: Row) -> None:
        """Called at an eviction, before ``score``."""

    def score(self, row: Row, layer: int, head: int) -> np.ndarray:
        """Of every token held, in the order of row.held."""
        raise NotImplementedError


class NewestFirst(Scorer):
    """The window and streaming policies."""

    def score(self, row: Row, layer: int, head: int) -> np.ndarray:
        return row.positions(layer, head).astype(float)


class UniformDraws(Scorer):
    """The random policy: the documented derivation of its draws, spelled out with JAX's own functions."""

    def __init__(self, seed: int, id: str, sample: int = 0):
        digest = hashlib.blake2b(f"{seed}\0{id}\0{sample}".encode(), digest_size=8).digest()
        raw = np.frombuffer(digest, dtype="<u4").astype(np.uint32)
        self.stream = jax.random.fold_in(jax.random.wrap_key_data(jax.numpy.asarray(raw), impl="threefry2x32"), 1)

    def key(self, row: Row) -> jax.Array:
        """The row's key at this eviction."""
        return jax.random.fold_in(self.stream, row.newest)

    def score(self, row: Row, layer: int, head: int) -> np.ndarray:
        keep_set = layer * row.n_heads + head if row.rule.per_head else 0
        return np.asarray(_uniform(self.key(row), keep_set, row.positions(layer, head)))


@jax.jit
def _uniform(key: jax.Array, keep_set: int, positions: np.ndarray) -> jax.Array:
    key = jax.random.fold_in(key, keep_set)
    return jax.vmap(lambda position: jax.random.uniform(jax.random.fold_in(key, position)))(positions)


@contextlib.contextmanager
def _watched(model: Any) -> Iterator[dict]:
    """What passes through the model: queries and keys before RoPE, cosines and sines, inputs, hidden states."""
    seen: dict = {}
    modules = {"hidden": model.model.norm, "rotation": model.model.rotary_emb}
    for index, layer in enumerate(model.model.layers):
        attention = layer.self_attn
        modules["input", index] = layer.input_layernorm
        modules["query", index] = getattr(attention, "q_norm", attention.q_proj)
        modules["key", index] = getattr(attention, "k_norm", attention.k_proj)
    keep = lambda name: lambda module, given, output: seen.__setitem__(name, output)
    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
