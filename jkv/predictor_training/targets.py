"""What the predictor is trained to give: labels, scaled; and the two losses."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jkv.axes import Array, Bool, Float

Scaling = Literal["linear", "power"]


@dataclasses.dataclass(frozen=True)
class Target:
    """What the predictor should give for a label. `target_of` makes the ones that DynTS's recipe has.

    Attributes:
        scaling: 'linear' for scale * label, 'power' for scale * label^exponent / exponent.
        scale: see there.
        exponent: see there; unused if linear.
        band: from the first number (included) to the second, targets have another weight in the squared error.
        band_weight: that weight; all others have 1.
    """

    scaling: Scaling
    scale: float
    exponent: float = 0.3
    band: tuple[float, float] = (4.0, 5.0)
    band_weight: float = 5.0

    def __call__(self, label: np.ndarray) -> np.ndarray:
        """The targets of labels of any shape, float32."""
        wide = label.astype(np.float64)
        if self.scaling == "power":
            wide = wide**self.exponent / self.exponent
        return (self.scale * wide).astype(np.float32)

    def weights(self, target: Float[Array, "*any"]) -> Float[Array, "*any"]:
        """The weight of each target in the squared error, float32."""
        inside = (target >= self.band[0]) & (target < self.band[1])
        return jnp.where(inside, jnp.float32(self.band_weight), jnp.float32(1.0))


def target_of(
    architecture: str, scaling: Scaling | None, scale: float | None, exponent: float = 0.3, band_weight: float = 5.0
) -> Target:
    """The target of DynTS's recipe (arXiv:2601.18383) for a model's family, but for what is given.

    Args:
        architecture: the model's. The recipe is linear with scale 1e4 for llama, power with scale 10 for the others.
        scaling: instead of the recipe's.
        scale: instead of the recipe's for that scaling.
        exponent: of the power; the recipe's is 0.3.
        band_weight: weight of targets from 4 to 5; the recipe's is 5.
    """
    scaling = scaling or ("linear" if architecture == "llama" else "power")
    scale = scale or {"linear": 1e4, "power": 10.0}[scaling]
    return Target(scaling, scale, exponent, band_weight=band_weight)


def squared_error(
    predicted: Float[Array, "B T"], target: Float[Array, "B T"], valid: Bool[Array, "B T"], rule: Target
) -> Float[Array, ""]:
    """The weighted squared error, summed over the tokens where ``valid`` (the others may be NaN).

    Args:
        predicted: importance.
        target: what it should be.
        valid: which tokens there are; the others pad a trace.
        rule: gives each token's weight.
    """
    error = jnp.where(valid, predicted - target, 0.0)
    return jnp.sum(rule.weights(target) * error * error)


PAIRS = 16  # how many others each token is compared with in a step


def ranking(
    predicted: Float[Array, "B T"], target: Float[Array, "B T"], valid: Bool[Array, "B T"], key: jax.Array
) -> Float[Array, ""]:
    """A pairwise loss: it counts which of two tokens is more important, not by how much (RankNet, Burges et al. 2005).

    The loss of a pair is log(1 + exp(-(s_i - s_j))), where s is what is predicted, and i has the larger target. Each
    token is compared with those that `PAIRS` random rotations of the row put in its place. Its loss is the mean over
    those of them that are valid and have another target.

    Args:
        predicted: importance.
        target: what it should be.
        valid: which tokens there are; the others pad a trace.
        key: of the random rotations.

    Returns:
        The sum over tokens.
    """
    length = predicted.shape[1]
    shifts = jax.random.randint(key, (PAIRS,), 1, jnp.maximum(length, 2))

    def against(shift: jax.Array) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
        """Each token's loss against the token ``shift`` places before it, and whether the two count (1 or 0)."""
        other = lambda x: jnp.roll(x, shift, axis=1)
        counts = valid & other(valid) & (target != other(target))
        above = jnp.where(target > other(target), 1.0, -1.0)
        loss = jax.nn.softplus(-above * (predicted - other(predicted)))
        return jnp.where(counts, loss, 0.0), counts.astype(jnp.float32)

    losses, counts = jax.lax.map(against, shifts)
    return jnp.sum(jnp.sum(losses, axis=0) / jnp.maximum(jnp.sum(counts, axis=0), 1.0))
