"""Statistics of a model's queries before RoPE, for the policy triattention (arXiv:2604.04921).

They are measured once per model and stored beside its weights.
"""

from collections.abc import Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jkv.axes import Array, Float, Int
from jkv.errors import UserError
from jkv.files.tensors import read_tensors
from jkv.models.attention import CausalAttention
from jkv.models.config import ModelConfig
from jkv.models.decoder import Decoder
from jkv.models.rope import frequencies, rotate, rotation

FILE = "query_statistics.safetensors"


def measure_query_statistics(model: Decoder, sequences: Iterable[tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Average a model's queries before RoPE over all tokens of some sequences.

    RoPE turns the components i and i + H/2 of a query together; below, such a pair is a complex number q_f.

    Args:
        model: the model.
        sequences: token ids. They are padded to a power of two, 64 or more, so that few programs are compiled.

    Returns:
        'mean' [L, N, H], the mean query, and 'modulus' [L, N, H/2], the mean of |q_f|; float32.

    Raises:
        UserError: there are no sequences.
    """
    graph, weights = nnx.split(model)

    @jax.jit
    def sums(weights: nnx.State, tokens: jax.Array, length: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Sums over the first ``length`` tokens, in the shapes of the result."""
        positions = jnp.arange(tokens.shape[0])[None]
        _, per_layer = nnx.merge(graph, weights)(tokens[None], positions, _Queries(model.config, positions))
        there = (positions[0] < length).astype(jnp.float32)[:, None, None]
        stacked = [q[0].astype(jnp.float32) for _, q in per_layer]
        mean = jnp.stack([jnp.sum(q * there, axis=0) for q in stacked])
        return mean, jnp.stack([jnp.sum(_modulus(q) * there, axis=0) for q in stacked])

    total, tokens = None, 0
    for sequence in sequences:
        padded = np.zeros(max(64, 1 << (len(sequence) - 1).bit_length()), np.int32)
        padded[: len(sequence)] = sequence
        here = [np.asarray(x, np.float64) for x in sums(weights, padded, np.int32(len(sequence)))]
        total = here if total is None else [x + y for x, y in zip(total, here, strict=True)]
        tokens += len(sequence)
    if total is None:
        raise UserError("no text to measure queries on", mend="give a task with at least one problem")
    mean, modulus = ((x / tokens).astype(np.float32) for x in total)
    return {"mean": mean, "modulus": modulus}


class _Queries:
    """Causal attention that also returns the queries, turned back to what they were before RoPE."""

    def __init__(self, config: ModelConfig, positions: Int[Array, "B T"]):
        # RoPE turns by an angle and, as part of cos and sin, multiplies by a factor.
        cos, sin = rotation(config, positions)
        _, factor = frequencies(config)
        self.back = cos / factor**2, -sin / factor**2

    def __call__(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B T K H"],
        v: Float[Array, "B T K H"],
        kv: None,
        x: Float[Array, "B T D"],
        /,
    ) -> tuple[Float[Array, "B T N H"], None, Float[Array, "B T N H"]]:
        out, kv, _ = CausalAttention()(q, k, v, kv, x)
        return out, kv, rotate(q.astype(jnp.float32), *self.back)


def _modulus(x: Float[Array, "T N H"]) -> Float[Array, "T N half"]:
    """|q_f| of every pair."""
    real, imaginary = jnp.split(x, 2, axis=-1)
    return jnp.sqrt(real * real + imaginary * imaginary)


def load_query_statistics(config: ModelConfig, given: Path | None, directory: Path | None) -> dict[str, jax.Array]:
    """Read a model's statistics, as ``measure_query_statistics`` returns them.

    Args:
        config: the model's.
        given: the value of ``--predictor``: the file, or the directory that it is in. None if not given.
        directory: the model's directory, where the file is looked for otherwise; None if there is none.

    Raises:
        UserError: there is no file, or it belongs to another model.
    """
    path = given
    if path is None and directory is not None:
        path = directory / FILE
    elif path is not None and path.is_dir():
        path = path / FILE
    if path is None or not path.exists():
        raise UserError(
            "policy triattention needs this model's query statistics, and there are none",
            where=str(path or "--predictor"),
            mend="measure them once with python -m jkv.calibrate --model MODEL",
        )
    n, h = config.n_heads, config.head_dim
    shapes = {"mean": (config.n_layers, n, h), "modulus": (config.n_layers, n, h // 2)}
    return {name: jnp.asarray(value, jnp.float32) for name, value in read_tensors(path, shapes).items()}
