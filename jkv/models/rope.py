"""Rotary position embedding (RoPE, arXiv:2104.09864), with the scalings of its frequencies that the family uses.

A head's components i and i + H/2 are a pair, as in Hugging Face's checkpoints. Each pair is turned by its position
times the pair's frequency.
"""

import math

import jax.numpy as jnp
import numpy as np

from jkv.axes import Array, Float, Int
from jkv.models.config import LinearScaling, Llama3Scaling, ModelConfig, YarnScaling


def frequencies(config: ModelConfig) -> tuple[np.ndarray, float]:
    """The angular frequency of each pair [H/2], float32, and the factor that cos and sin are multiplied by."""
    pairs = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    plain = (1.0 / np.float32(config.rope_theta) ** pairs).astype(np.float32)
    match config.rope_scaling:
        case None:
            return plain, 1.0
        case LinearScaling(factor=factor):
            return plain / np.float32(factor), 1.0
        case Llama3Scaling() as scaling:
            return _llama3(plain, scaling), 1.0
        case YarnScaling() as scaling:
            return _yarn(plain, config, scaling), scaling.attention_factor


def _llama3(plain: np.ndarray, scaling: Llama3Scaling) -> np.ndarray:
    # What happens to a frequency depends on how often it turns within the original context. Frequencies of few turns
    # are divided by `factor`, those of many are kept, and in between the two are mixed, linearly in the number of
    # turns.
    turns = scaling.original_max_positions * plain / (2 * math.pi)
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blend = np.clip(blend, 0.0, 1.0)
    return ((1 - blend) * plain / scaling.factor + blend * plain).astype(np.float32)


def _yarn(plain: np.ndarray, config: ModelConfig, scaling: YarnScaling) -> np.ndarray:
    # arXiv:2309.00071, section 3.2. Pairs before the one that turns beta_fast times are kept; those after the one that
    # turns beta_slow times are divided by `factor`; in between the two are mixed, linearly in the pair's index.
    def pair_of(turns: float) -> float:
        """The index, with a fraction, of the pair that turns so often within the original context."""
        wavelength = scaling.original_max_positions / (turns * 2 * math.pi)
        return config.head_dim * math.log(wavelength) / (2 * math.log(config.rope_theta))

    low, high = pair_of(scaling.beta_fast), pair_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.head_dim - 1)
    width = high - low if high != low else 0.001
    interpolated = np.clip((np.arange(config.head_dim // 2, dtype=np.float32) - low) / width, 0, 1)
    return (plain / scaling.factor * interpolated + plain * (1 - interpolated)).astype(np.float32)


def rotation(
    config: ModelConfig, positions: Int[Array, "B T"]
) -> tuple[Float[Array, "B T 1 half"], Float[Array, "B T 1 half"]]:
    """cos and sin of every pair's angle at each position, times YaRN's factor, float32. The axis of 1 is for heads."""
    frequency, factor = frequencies(config)
    angle = positions[:, :, None, None].astype(jnp.float32) * jnp.asarray(frequency)[None, None, None, :]
    return jnp.cos(angle) * factor, jnp.sin(angle) * factor


def rotate(
    x: Float[Array, "B T heads H"], cos: Float[Array, "B T 1 half"], sin: Float[Array, "B T 1 half"]
) -> Float[Array, "B T heads H"]:
    """Turn every pair of x, in float32; the result has the dtype of x.

    Args:
        x: queries or keys.
        cos: see ``rotation``.
        sin: likewise.
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
