"""Scores of policies that remember: from attention and hidden states of every token as it is put in."""

import collections
import dataclasses
import math
from typing import Literal

import numpy as np

from tests.support.oracle import Row, Scorer, UniformDraws
from tests.support.oracle_scores import attention, observed, raise_observed, redundancy

LONGEST = 1000  # positions a test reaches


def received(row: Row, weights: list[np.ndarray], group: Literal["max", "mean"]) -> dict[tuple[int, int], np.ndarray]:
    """Attention that slots got, by layer and head; if the keep set is shared, all have their average."""
    reduce = np.max if group == "max" else np.mean
    by_head = {(layer, head): reduce(weights[layer][row.query_heads(head)], axis=0) for layer, head in row.heads}
    return by_head if row.rule.per_head else averaged(row, by_head)


def averaged(row: Row, by_head: dict[tuple[int, int], np.ndarray]) -> dict[tuple[int, int], np.ndarray]:
    """The average over layers and heads, in every place."""
    return dict.fromkeys(row.heads, np.mean(list(by_head.values()), axis=0))


def memory(first: np.ndarray) -> dict[tuple[int, int], np.ndarray]:
    """By layer and head, a number a position."""
    return collections.defaultdict(first.copy)


class H2O(Scorer):
    def __init__(self):
        self.mass = memory(np.zeros(LONGEST))

    def watch(self, row: Row, position: int, attention: list[np.ndarray]) -> None:
        for (layer, head), got in received(row, attention, "mean").items():
            self.mass[layer, head][row.held[layer][head][: len(got)]] += got

    def score(self, row: Row, layer: int, head: int) -> np.ndarray:
        return self.mass[layer, head][row.held[layer][head]]


class Lazy(Scorer):
    def __init__(self, alpha: float = 1e-4):
        self.alpha = alpha
        self.last, self.gap = memory(np.arange(LONGEST)), memory(np.zeros(LONGEST, int))

    def watch(self, row: Row, position: int, attention: list[np.ndarray]) -> None:
        for (layer, head), got in received(row, attention, "max").items():
            row.rule.decide(got, self.alpha)
            for p, weight in zip(row.held[layer][head][: len(got)], got, strict=True):
                if weight > self.alpha:
                    self.gap[layer, head][p] = max(self.gap[layer, head][p], position - self.last[layer, head][p])
                    self.last[layer, head][p] = position

    def score(self, row: Row, layer: int, head: int) -> np.ndarray:
        sigmoid = lambda x: 1 / (1 + math.exp(-x))
        scores = []
        for p in row.held[layer][head]:
            idle, gap = int(row.newest - self.last[layer, head][p]), int(self.gap[layer, head][p])
            if gap:
                scores.append(2 * sigmoid(-idle / gap) + 2 * sigmoid(-1 / gap))
            else:
                scores.append(float(idle == 0))
        return np.array(scores)


class RaaS(Scorer):
    def __init__(self):
        self.stamp = memory(np.arange(LONGEST))

    def watch(self, row: Row, position: int, attention: list[np.ndarray]) -> None:
        for (layer, head), got in received(row, attention, "mean").items():
            order = np.argsort(got)
            top = order[len(got) // 2 :]
            if len(got) > 1:
                row.rule.decide(got[order[len(got) // 2 - 1]], got[top[0]])
            self.stamp[layer, head][row.positions(layer, head)[top]] = position

    def score(self, row: Row, layer: int, head: int) -> np.ndarray:
        return self.stamp[layer, head][row.held[layer][head]].astype(float)


@dataclasses.dataclass
class GKV(Scorer):
    lam: float = 0.5
    decay: float = 0.8
    queries: int = 16

    def __post_init__(self):
        self.remembered = memory(np.zeros(LONGEST))

    def look(self, row: Row) -> None:
        scores = {}
        for layer, head in row.heads:
            got = attention(row, layer, head, self.queries).max(axis=0).mean(axis=0)
            # Attention to the observed tokens isn't comparable with that to others.
            got[observed(row, layer, head, self.queries)] = 0
            scores[layer, head] = got / got.max()
        if not row.rule.per_head:
            scores = averaged(row, scores)
        for (layer, head), score in scores.items():
            held, past = row.held[layer][head], self.remembered[layer, head]
            past[held] = np.maximum(self.decay * past[held], score)

    def score(self, row: Row, layer: int, head: int) -> np.ndarray:
        redundant = redundancy(row, layer, head)
        remembered = self.remembered[layer, head][row.held[layer][head]]
        scores = self.lam * remembered - (1 - self.lam) * redundant / redundant.max()
        return raise_observed(scores, observed(row, layer, head, self.queries))


class TrimKV(Scorer):
    def __init__(self, gates: list[dict[str, np.ndarray]]):
        self.gates = [{name: np.asarray(x).astype(float) for name, x in gate.items()} for gate in gates]

    def score(self, row: Row, layer: int, head: int) -> np.ndarray:
        held = row.held[layer][head]
        beta = np.stack([self._log_beta(row, index, held) for index in range(row.n_layers)])
        beta = beta[layer, :, head] if row.rule.per_head else beta.mean(axis=(0, 2))
        return (row.newest - np.array(held)) * beta

    def _log_beta(self, row: Row, layer: int, positions: list[int]) -> np.ndarray:
        """[positions, K]"""
        gate, x = self.gates[layer], np.stack([row.inputs[layer][p] for p in positions])
        x = x @ gate["linear1.weight"].T + gate["linear1.bias"]
        x = x / (1 + np.exp(-x)) @ gate["linear2.weight"].T + gate["bias"]
        return -np.logaddexp(0, -x)


@dataclasses.dataclass
class DynTS(Scorer):
    predictor: tuple[np.ndarray, ...]
    draws: UniformDraws
    keep: Literal["top", "random", "bottom"] = "top"
    think_end: int = -1

    def score(self, row: Row, layer: int, head: int) -> np.ndarray:
        held = row.held[layer][head]
        generated = row.tokens[row.prompt_length :]
        end = row.prompt_length + generated.index(self.think_end) if self.think_end in generated else math.inf
        x = np.stack([row.hidden[p] for p in held])
        for kernel in self.predictor:
            x = np.logaddexp(0, x @ np.asarray(kernel).astype(float))
        scores = {"top": x[:, 0], "bottom": -x[:, 0]}.get(self.keep)
        if scores is None:
            scores = self.draws.score(row, layer, head)
        return np.where(row.positions(layer, head) >= end, math.inf, scores)
