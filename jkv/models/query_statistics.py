"""Statistics of a model's queries before RoPE, which triattention needs: measured once, stored beside the weights."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jkv.axes import Array, Float
from jkv.errors import UserError
from jkv.files.tensors import read_tensors
from jkv.models.attention import CausalAttention
from jkv.models.config import ModelConfig
from jkv.models.decoder import Decoder
from jkv.models.rope import frequencies, rotate, rotation

FILE = "query_statistics.safetensors"


def measure_query_statistics(model: Decoder, sequences: Iterable[tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Over all tokens of ``sequences``: 'mean' [L, N, H] of the queries before RoPE (pairs i, i + H/2), and 'modulus'
    [L, N, H/2], the mean of |q_f|. Float32. Sequences are padded to a few lengths, so few programs are compiled."""
    graph, weights = nnx.split(model)

    @jax.jit
    def sums(weights, tokens: jax.Array, length: jax.Array) -> tuple[jax.Array, jax.Array]:
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
    """Causal attention; what it saw are the queries, turned back to before RoPE."""

    def __init__(self, config: ModelConfig, positions: jax.Array):
        cos, sin = rotation(config, positions)
        _, factor = frequencies(config)
        self.back = cos / factor**2, -sin / factor**2

    def __call__(self, q, k, v, kv, x):
        out, kv, _ = CausalAttention()(q, k, v, kv, x)
        return out, kv, rotate(q.astype(jnp.float32), *self.back)


def _modulus(x: Float[Array, "T N H"]) -> Float[Array, "T N half"]:
    real, imaginary = jnp.split(x, 2, axis=-1)
    return jnp.sqrt(real * real + imaginary * imaginary)


def load_query_statistics(context: Any) -> dict[str, jax.Array]:
    """The statistics of ``--predictor``, or of the file beside the model. Raises UserError if there are none, or if
    they are another model's."""
    config: ModelConfig = context.config
    path: Path | None = context.predictor
    if path is None and context.directory is not None:
        path = context.directory / FILE
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
