"""Scores that policies give at an eviction from keys, values and the newest queries, in float64."""

import dataclasses
import math
from typing import Literal

import jax
import numpy as np

from tests.support.oracle import Row, Scorer, UniformDraws


def softmax(logits: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Over the last axis, where seen; zero elsewhere, and where nothing is seen."""
    top = np.where(seen, logits, -np.inf).max(-1, keepdims=True)
    weights = np.where(seen, np.exp(np.where(seen, logits - np.where(np.isfinite(top), top, 0), 0)), 0)
    total = weights.sum(-1, keepdims=True)
    return weights / np.where(total > 0, total, 1)


def observed(row: Row, layer: int, head: int, n: int) -> np.ndarray:
    """Which tokens held are the newest n of the sequence."""
    return row.positions(layer, head) > row.newest - n


def query_logits(row: Row, layer: int, head: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """q k / sqrt(H) of the newest n queries [G, queries, slots], and which slots each may see [queries, slots]."""
    asking = range(max(0, row.newest - n + 1), row.newest + 1)
    queries = np.stack([row.queries[layer][p][row.query_heads(head)] for p in asking], axis=1)
    logits = queries @ row.keys(layer, head).T / math.sqrt(row.head_dim)
    return logits, row.positions(layer, head)[None] <= np.array(asking)[:, None]


def attention(row: Row, layer: int, head: int, n: int, allowed: np.ndarray | bool = True) -> np.ndarray:
    """Weights [G, queries, slots] of the newest n queries over the allowed slots."""
    logits, seen = query_logits(row, layer, head, n)
    return softmax(logits, seen & allowed)


def raise_observed(scores: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """The observed tokens get the highest score of the others."""
    return np.where(observed, scores[~observed].max(), scores)


def pool(scores: np.ndarray, positions: np.ndarray, left_out: np.ndarray, width: int, kind: str) -> np.ndarray:
    """Maximum or average over ``width`` neighbours in order of position; what is left out has no say."""
    order, pooled = np.argsort(positions), np.empty(len(scores))
    for rank, slot in enumerate(order):
        near = order[max(0, rank - width // 2) : rank + width // 2 + 1]
        near = [scores[i] for i in near if not left_out[i]]
        pooled[slot] = sum(near) / width if kind == "avg" else max(near, default=-math.inf)
    return pooled


def redundancy(row: Row, layer: int, head: int, threshold: float = 0.5) -> np.ndarray:
    """R-KV's redundancy of each key held."""
    keys, positions = row.keys(layer, head), row.positions(layer, head)
    unit = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, 0)
    row.rule.decide(cosine, threshold)
    for pointing in range(len(keys)):
        similar = [other for other in range(len(keys)) if cosine[pointing, other] > threshold]
        if similar:
            cosine[pointing, max(similar, key=lambda other: positions[other])] = 0
    return softmax(cosine.mean(axis=0), np.True_)


class KNorm(Scorer):
    def score(self, row: Row, layer: int, head: int) -> np.ndarray:
        return -np.linalg.norm(row.keys(layer, head), axis=1)


class KeyDiff(Scorer):
    def score(self, row: Row, layer: int, head: int) -> np.ndarray:
        keys = row.keys(layer, head)
        unit = keys / np.linalg.norm(keys, axis=1, keepdims=True)
        anchor = unit.mean(axis=0)
        return -(unit @ anchor) / np.linalg.norm(anchor)


@dataclasses.dataclass
class SepLLM(Scorer):
    separators: tuple[int, ...]

    def score(self, row: Row, layer: int, head: int) -> np.ndarray:
        # A separator outlives whatever isn't one; among equals the newest.
        return np.array([p + 1e6 * (row.tokens[p] in self.separators) for p in row.held[layer][head]])


@dataclasses.dataclass
class SnapKV(Scorer):
    queries: int = 8
    group: Literal["max", "mean"] = "max"
    pool: Literal["max", "avg"] = "max"
    width: int = 7

    def score(self, row: Row, layer: int, head: int) -> np.ndarray:
        weights = attention(row, layer, head, self.queries)
        weights = weights.max(axis=0) if self.group == "max" else weights.mean(axis=0)
        looking = observed(row, layer, head, self.queries)
        pooled = pool(weights.mean(axis=0), row.positions(layer, head), looking, self.width, self.pool)
        return raise_observed(pooled, looking)


@dataclasses.dataclass
class RKV(Scorer):
    lam: float = 0.1
    queries: int = 8

    def score(self, row: Row, layer: int, head: int) -> np.ndarray:
        looking = observed(row, layer, head, self.queries)
        logits, seen = query_logits(row, layer, head, self.queries)
        weights = softmax(logits.max(axis=0), seen & ~looking)
        importance = pool(weights.mean(axis=0), row.positions(layer, head), looking, 7, "max")
        return raise_observed(self.lam * importance - (1 - self.lam) * redundancy(row, layer, head), looking)


class TOVA(Scorer):
    def score(self, row: Row, layer: int, head: int) -> np.ndarray:
        # KV heads of a layer hold the same tokens: their scores are the same.
        assert all(held == row.held[layer][head] for held in row.held[layer])
        weights = np.concatenate([attention(row, layer, k, 1)[:, 0] for k in range(row.n_heads)])
        return raise_observed(weights.mean(axis=0), observed(row, layer, head, 1))


@dataclasses.dataclass
class ExpectedAttention(Scorer):
    queries: int = 128
    future: int = 512
    skip: int = 4

    def score(self, row: Row, layer: int, head: int) -> np.ndarray:
        keys, values, positions = row.keys(layer, head), row.values(layer, head), row.positions(layer, head)
        half = row.head_dim // 2
        cos, sin = row.rotation(range(row.newest + 1, row.newest + 1 + self.future))
        quarter_turn = np.zeros((row.head_dim, row.head_dim))
        quarter_turn[:half, half:], quarter_turn[half:, :half] = -np.eye(half), np.eye(half)
        turn = np.diag(cos.mean(axis=0)) + np.diag(sin.mean(axis=0)) @ quarter_turn
        counted = positions >= self.skip
        expected = []
        for query_head in range(row.n_heads * row.group)[row.query_heads(head)]:
            first = max(self.skip, row.newest - self.queries + 1)
            queries = np.stack([q[query_head] for q in row.queries_before[layer][first:]])
            mean = turn @ queries.mean(axis=0)
            covariance = turn @ np.cov(queries, rowvar=False, bias=True) @ turn.T
            logits = keys @ mean / math.sqrt(row.head_dim)
            logits += np.einsum("si,ij,sj->s", keys, covariance, keys) / (2 * row.head_dim)
            expected.append(softmax(logits, counted) * np.linalg.norm(values, axis=1))
        scores = np.mean(expected, axis=0)
        return np.where(counted, scores, scores[counted].max())


@dataclasses.dataclass
class TriAttention(Scorer):
    mean: np.ndarray
    modulus: np.ndarray

    def score(self, row: Row, layer: int, head: int) -> np.ndarray:
        held = row.held[layer][head]
        pair = lambda x: x[..., : row.head_dim // 2] + 1j * x[..., row.head_dim // 2 :]
        keys = pair(np.stack([row.keys_before[layer][p][head] for p in held]).astype(complex))
        frequencies = row.model.model.rotary_emb.inv_freq.double().numpy()
        distances = row.newest - np.array(held)[:, None]
        per_query_head = []
        for mean, modulus in zip(
            self.mean[layer, row.query_heads(head)].astype(complex),
            self.modulus[layer, row.query_heads(head)].astype(float),
            strict=True,
        ):
            phase = np.angle(pair(mean)) - np.angle(keys)
            size = np.abs(pair(mean)) * np.abs(keys)
            ahead = [(size * np.cos(frequencies * (distances + 2**i) + phase)).sum(axis=1) for i in range(17)]
            scores = np.mean(ahead, axis=0) + ((modulus - np.abs(pair(mean))) * np.abs(keys)).sum(axis=1)
            per_query_head.append((scores - scores.mean()) / scores.std())
        return np.max(per_query_head, axis=0)


@dataclasses.dataclass
class VaSEAttnV(Scorer):
    """A quarter of the budget by range of values; the rest drawn in proportion to attention."""

    draws: UniformDraws
    queries: int = 64
    width: int = 5

    def look(self, row: Row) -> None:
        self.ranges, self.shares = {}, {}
        for layer, head in row.heads:
            values, window = row.values(layer, head), observed(row, layer, head, row.rule.window)
            self.ranges[layer, head] = values.max(axis=1) - values.min(axis=1)
            weights = attention(row, layer, head, self.queries, ~window).mean(axis=(0, 1))
            self.shares[layer, head] = pool(weights, row.positions(layer, head), window, self.width, "avg")
        if not row.rule.per_head:
            for by_head in (self.ranges, self.shares):
                by_head.update(dict.fromkeys(row.heads, np.mean(list(by_head.values()), axis=0)))

    def score(self, row: Row, layer: int, head: int) -> np.ndarray:
        rule, held = row.rule, row.held[layer][head]
        uniform = np.clip(self.draws.score(row, layer, head).astype(float), 1e-7, 1 - 1e-7)
        scores = np.log(np.maximum(self.shares[layer, head], 1e-30)) - np.log(-np.log(uniform))
        free = [
            i
            for i, p in enumerate(held)
            if rule.sinks <= p <= row.newest - rule.window and not (rule.pin_prompt and p < row.prompt_length)
        ]
        ranges = self.ranges[layer, head]
        free.sort(key=lambda i: (ranges[i], held[i]))
        best_out, worst_in = free[-(rule.budget // 4) - 1], free[-(rule.budget // 4)]
        # The same token twice has the same values in the first layer, up to rounding: no tie to rely on.
        rule.decide(ranges[best_out] * (1 + 1e-9 * (ranges[best_out] == ranges[worst_in])), ranges[worst_in])
        scores[free[-(rule.budget // 4) :]] = math.inf
        return scores


@dataclasses.dataclass
class VaSEDKV(Scorer):
    """Size of keys and values seen through one Gaussian an eviction, as shares."""

    draws: UniformDraws
    columns: int = 20

    def score(self, row: Row, layer: int, head: int) -> np.ndarray:
        gaussian = jax.random.normal(self.draws.key(row), (row.head_dim, self.columns)) * self.columns**-0.5
        gaussian = np.asarray(gaussian).astype(float)
        sizes = [((x(layer, head) @ gaussian) ** 2).sum(axis=1) for x in (row.keys, row.values)]
        return sizes[0] * sizes[1] / (sizes[0] * sizes[1]).sum()
