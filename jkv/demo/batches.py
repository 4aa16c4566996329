"""Training batches of one fixed shape with little padding.

A batch has the same number of problems of each size (number of variables). Each problem is padded to the longest of its
size, and all are laid end to end in one row of M tokens [1 M]. So each projection is a single large matrix product, and
only attention splits the row into problems again (``RowsAttention``). Each layout is compiled once.
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
"""Weight of a filler word in the loss, where other words of a completion have 1."""


def longest(variables: int, *, filler: bool) -> int:
    """Tokens of the longest problem with so many variables, prompt and completion together."""
    asked = min(MAX_ASKED, variables)
    prompt = 6 * variables + 2 + asked
    blocks = 22 + 26 * (variables - 1) + (16 * variables if filler else 0)
    return prompt + blocks + 2 + 2 * asked


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which problems a batch has.

    Attributes:
        rows: problems of each size.
        sizes: numbers of variables.
        filler: whether the thoughts have filler.
    """

    rows: int
    sizes: tuple[int, ...]
    filler: bool

    @property
    def variables(self) -> list[int]:
        """The size of each problem of a batch, in the order in which they are laid out."""
        return [size for size in self.sizes for _ in range(self.rows)]

    @property
    def lengths(self) -> list[int]:
        """For each size, the tokens of a row: one less than the longest problem, whose last token predicts nothing."""
        return [longest(size, filler=self.filler) - 1 for size in self.sizes]

    @classmethod
    def of_tokens(cls, tokens: int, sizes: tuple[int, ...], *, filler: bool) -> "Layout":
        """The layout with about ``tokens`` tokens, and at least one row of each size."""
        each = sum(cls(1, sizes, filler).lengths)
        return cls(max(1, round(tokens / each)), sizes, filler)


@pytree
class Batch:
    """One training batch of M tokens.

    Attributes:
        tokens: of all problems, end to end.
        targets: the token that follows each.
        positions: of each token within its problem.
        weights: of each target in the loss: 0 in prompts and padding, ``FILLER_WEIGHT`` in filler, else 1.
    """

    tokens: Int[Array, "1 M"]
    targets: Int[Array, "1 M"]
    positions: Int[Array, "1 M"]
    weights: Float[Array, "1 M"]


def encode(problems: list[Problem], layout: Layout, vocabulary: dict[str, int]) -> Batch:
    """Make a batch.

    Args:
        problems: their numbers of variables are ``layout.variables``, in that order.
        layout: of the batch.
        vocabulary: token ids of the words.
    """
    columns: list[list[np.ndarray]] = []
    for problem, size in zip(problems, layout.variables, strict=True):
        length = longest(size, filler=layout.filler)
        words = problem.prompt.split()
        weights = [0.0] * len(words)
        for text, is_filler in problem.segments(filler=layout.filler):
            segment = text.split()
            words += segment
            weights += [FILLER_WEIGHT if is_filler else 1.0] * len(segment)
        ids = np.full(length, vocabulary[PAD], np.int32)
        ids[: len(words)] = [vocabulary[word] for word in words]
        weight = np.zeros(length, np.float32)
        weight[: len(words)] = weights
        columns.append([ids[:-1], ids[1:], np.arange(length - 1, dtype=np.int32), weight[1:]])
    return Batch(*(jnp.asarray(np.concatenate(column)[None]) for column in zip(*columns, strict=True)))


@dataclasses.dataclass(frozen=True)
class RowsAttention:
    """Causal attention within each problem of a batch whose problems are laid end to end.

    Implements ``jkv.models.attention.Attend`` for training, without a KV buffer.
    """

    layout: Layout

    def __call__(
        self,
        q: Float[Array, "1 M N H"],
        k: Float[Array, "1 M K H"],
        v: Float[Array, "1 M K H"],
        kv: None,
        x: Float[Array, "1 M D"],
    ) -> tuple[Float[Array, "1 M N H"], None, None]:
        del x
        n, k_heads, h = q.shape[2], k.shape[2], q.shape[3]
        g = n // k_heads
        outs, start = [], 0
        for t in self.layout.lengths:
            rows, stop = self.layout.rows, start + self.layout.rows * t
            # Rows and KV heads are merged into one batch axis, and the queries of a KV head into one matrix: on a CPU,
            # XLA multiplies these several times faster than arrays [rows, t, heads, H].
            q_t, k_t, v_t = (a[0, start:stop].reshape(rows, t, -1, h) for a in (q, k, v))
            q_t = q_t.reshape(rows, t, k_heads, g, h).transpose(0, 2, 3, 1, 4).reshape(-1, g * t, h)
            k_t, v_t = (a.transpose(0, 2, 1, 3).reshape(-1, t, h) for a in (k_t, v_t))
            scores = jnp.einsum("bqh,bsh->bqs", q_t * h**-0.5, k_t)
            future = np.where(np.tri(t, dtype=bool), np.float32(0), np.float32(-1e30))
            mixed = jnp.einsum("bqs,bsh->bqh", jax.nn.softmax(scores + np.tile(future, (g, 1))[None]), v_t)
            mixed = mixed.reshape(rows, k_heads, g, t, h).transpose(0, 3, 1, 2, 4)
            outs.append(mixed.reshape(rows * t, n, h))
            start = stop
        return jnp.concatenate(outs)[None], kv, None
