"""Training batches of one fixed shape, without padding worth the name.

A batch has the same number of rows of each problem size, each size padded to its own longest problem, and all rows
laid end to end as one row of M tokens [1 M]. Projections then are single large matrix products; only attention cuts
the row up again (``RowsAttention``). One layout is one compilation.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jkv.axes import Array, Float, Int
from jkv.demo.task import MAX_ASKED, Problem
from jkv.demo.tokenizer import PAD
from jkv.pytree import pytree

FILLER_WEIGHT = 0.2


def longest(variables: int, *, filler: bool) -> int:
    """Tokens in the longest problem of so many variables, prompt and completion."""
    asked = min(MAX_ASKED, variables)
    prompt = 6 * variables + 2 + asked
    blocks = 22 + 26 * (variables - 1) + (16 * variables if filler else 0)
    return prompt + blocks + 2 + 2 * asked


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which rows a batch has: ``rows`` problems of each size in ``sizes`` (in variables), with or without filler."""

    rows: int
    sizes: tuple[int, ...]
    filler: bool

    @property
    def variables(self) -> list[int]:
        """The size of each problem of a batch, in order."""
        return [size for size in self.sizes for _ in range(self.rows)]

    @property
    def lengths(self) -> list[int]:
        """Tokens of a row of each size. One less than the longest problem: the last token predicts nothing."""
        return [longest(size, filler=self.filler) - 1 for size in self.sizes]

    @classmethod
    def of_tokens(cls, tokens: int, sizes: tuple[int, ...], *, filler: bool) -> "Layout":
        """The layout with about ``tokens`` tokens, at least one row of each size."""
        each = sum(cls(1, sizes, filler).lengths)
        return cls(max(1, round(tokens / each)), sizes, filler)


@pytree
class Batch:
    """M tokens in a row, what follows each, and how much predicting that counts: 0 on prompts and padding,
    ``FILLER_WEIGHT`` on filler, else 1."""

    tokens: Int[Array, "1 M"]
    targets: Int[Array, "1 M"]
    positions: Int[Array, "1 M"]
    weights: Float[Array, "1 M"]


def encode(problems: list[Problem], layout: Layout, vocabulary: dict[str, int]) -> Batch:
    """Lay out problems whose sizes are ``layout.variables``."""
    columns: list[list[np.ndarray]] = []
    for problem, size in zip(problems, layout.variables, strict=True):
        length = longest(size, filler=layout.filler)
        words = problem.prompt.split()
        weights = [0.0] * len(words)
        for text, is_filler in problem.pieces(filler=layout.filler):
            piece = text.split()
            words += piece
            weights += [FILLER_WEIGHT if is_filler else 1.0] * len(piece)
        ids = np.full(length, vocabulary[PAD], np.int32)
        ids[: len(words)] = [vocabulary[word] for word in words]
        weight = np.zeros(length, np.float32)
        weight[: len(words)] = weights
        columns.append([ids[:-1], ids[1:], np.arange(length - 1, dtype=np.int32), weight[1:]])
    return Batch(*(jnp.asarray(np.concatenate(column)[None]) for column in zip(*columns, strict=True)))


@dataclasses.dataclass(frozen=True)
class RowsAttention:
    """Causal attention within each row of a layout, over tokens laid end to end. An ``attend`` of the decoder."""

    layout: Layout

    def __call__(self, q, k, v, kv, x):
        del x
        n, k_heads, h = q.shape[2], k.shape[2], q.shape[3]
        g = n // k_heads
        outs, start = [], 0
        for t in self.layout.lengths:
            rows, stop = self.layout.rows, start + self.layout.rows * t
            # Rows and KV heads are merged into one batch axis, and the queries of a KV head into one matrix: XLA on
            # CPU multiplies such batches several times faster than the natural layout.
            q_t, k_t, v_t = (x[0, start:stop].reshape(rows, t, -1, h) for x in (q, k, v))
            q_t = q_t.reshape(rows, t, k_heads, g, h).transpose(0, 2, 3, 1, 4).reshape(-1, g * t, h)
            k_t, v_t = (x.transpose(0, 2, 1, 3).reshape(-1, t, h) for x in (k_t, v_t))
            scores = jnp.einsum("bqh,bsh->bqs", q_t * h**-0.5, k_t)
            future = np.where(np.tri(t, dtype=bool), np.float32(0), np.float32(-1e30))
            mixed = jnp.einsum("bqs,bsh->bqh", jax.nn.softmax(scores + np.tile(future, (g, 1))[None]), v_t)
            mixed = mixed.reshape(rows, k_heads, g, t, h).transpose(0, 3, 1, 2, 4)
            outs.append(mixed.reshape(rows * t, n, h))
            start = stop
        return jnp.concatenate(outs)[None], kv, None
