"""From labels to what the predictor is trained on: scaling, weights, losses."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jkv.axes import Array, Bool, Float

Scaling = Literal["linear", "power"]


@dataclasses.dataclass(frozen=True)
class Target:
    """What the predictor should say of a label, as the published recipe has it for each family.

    linear (Llama): scale * label, scale 1e4.  power (Qwen): scale * label^exponent / exponent, scale 10, exponent 0.3.
    Weight ``band_weight`` in the mean where band[0] <= target < band[1], else 1.
    """

    scaling: Scaling
    scale: float
    exponent: float = 0.3
    band: tuple[float, float] = (4.0, 5.0)
    band_weight: float = 5.0

    def __call__(self, label: np.ndarray) -> np.ndarray:
        """Targets of labels, float32."""
        wide = label.astype(np.float64)
        if self.scaling == "power":
            wide = wide**self.exponent / self.exponent
        return (self.scale * wide).astype(np.float32)

    def weights(self, target: Float[Array, "*any"]) -> Float[Array, "*any"]:
        """Weight of each token in the mean."""
        inside = (target >= self.band[0]) & (target < self.band[1])
        return jnp.where(inside, jnp.float32(self.band_weight), jnp.float32(1.0))


def target_of(
    architecture: str, scaling: Scaling | None, scale: float | None, exponent: float = 0.3, band_weight: float = 5.0
) -> Target:
    """The published target of a model family, except for what is given."""
    scaling = scaling or ("linear" if architecture == "llama" else "power")
    scale = scale or {"linear": 1e4, "power": 10.0}[scaling]
    return Target(scaling, scale, exponent, band_weight=band_weight)


def squared_error(
    predicted: Float[Array, "B T"], target: Float[Array, "B T"], valid: Bool[Array, "B T"], rule: Target
) -> Float[Array, ""]:
    """Sum over tokens of the weighted squared error."""
    error = jnp.where(valid, predicted - target, 0.0)
    return jnp.sum(rule.weights(target) * error * error)


PAIRS = 16  # partners that each token is compared with in a step


def ranking(
    predicted: Float[Array, "B T"], target: Float[Array, "B T"], valid: Bool[Array, "B T"], key: jax.Array
) -> Float[Array, ""]:
    """Sum over tokens of the pairwise logistic loss log(1 + exp(-(s_i - s_j))), target i above target j.

    Partners are ``PAIRS`` random rotations of the row; a token's loss is the mean over those of its partners that are
    valid and have another target (the pairwise loss of RankNet, Burges et al. 2005).
    """
    length = predicted.shape[1]
    shifts = jax.random.randint(key, (PAIRS,), 1, jnp.maximum(length, 2))

    def against(shift: jax.Array) -> tuple[jax.Array, jax.Array]:
        other = lambda x: jnp.roll(x, shift, axis=1)
        counts = valid & other(valid) & (target != other(target))
        above = jnp.where(target > other(target), 1.0, -1.0)
        loss = jax.nn.softplus(-above * (predicted - other(predicted)))
        return jnp.where(counts, loss, 0.0), counts.astype(jnp.float32)

    losses, counts = jax.lax.map(against, shifts)
    return jnp.sum(jnp.sum(losses, axis=0) / jnp.maximum(jnp.sum(counts, axis=0), 1.0))
