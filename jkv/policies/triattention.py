"""triattention: attention expected at many distances, from calibrated queries (TriAttention, arXiv:2604.04921).

Queries before RoPE are described once per model, for each layer, query head and frequency f: their complex mean mu_f
and the mean of their modulus E|q_f| (``python -m jkv.calibrate`` measures both). With D the distance from the newest
token to the key, phi_f the angle from the key before RoPE to mu_f, w_f RoPE's frequency, and d in {1, 2, 4 ... 65536},

    score = mean over d of sum_f |mu_f| |k_f| cos(w_f (D + d) + phi_f) + sum_f (E|q_f| - |mu_f|) |k_f|

per query head. As in the source's code (WeianMao/triattention), scores are then standardised over the slots of a head,
and the maximum over the group is taken. Differs from it: its launcher averages each KV head over the layers, while
granularity head keeps layers apart here and shared averages everything; and it keeps the prompt and standardises over
the other tokens, while here all occupied slots count and the prompt is pinned only by ``--pin-prompt``. It evicts every
128 tokens (``--retain`` budget - 128).

The mean over d needs no loop. cos(w (D + d) + phi) is the real part of a product of two complex numbers: the key as
cached, after RoPE, and mu_f rotated to the newest position and multiplied by a constant, the mean over d of exp(i w_f
d). So the first term is a dot product of the key with one made-up query a head.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from jkv.axes import Array, Float
from jkv.models.query_statistics import load_query_statistics
from jkv.models.rope import frequencies, rotate, rotation
from jkv.policies.base import Context, Needs, Policy, Slots
from jkv.policies.keep_sets import stack

DISTANCES = 2.0 ** np.arange(17)


@dataclasses.dataclass(frozen=True)
class TriAttention(Policy):
    """No state. Parameters: query statistics, from ``--predictor`` or beside the model's weights."""

    name = "triattention"
    needs = Needs(keys=True)
    takes_predictor = True

    def bind(self, context: Context) -> tuple["TriAttention", dict[str, Array]]:
        """The policy, and the query statistics: 'mean' [L, N, H] and 'modulus' [L, N, H/2].

        Raises:
            UserError: there are none, or they belong to another model.
        """
        return self, load_query_statistics(context.config, context.predictor, context.directory)

    def score(self, state: tuple[()], slots: Slots) -> Float[Array, "B L K S"]:
        """The standardised score, per layer and KV head."""
        del state
        assert slots.keys is not None
        statistics: dict[str, Array] = slots.parameters
        layers = []
        for layer, keys in enumerate(slots.keys):
            mean, modulus = statistics["mean"][layer], statistics["modulus"][layer]
            score = _score(mean, modulus, keys.astype(jnp.float32), slots)
            occupied = slots.occupied[:, None, None, :]
            n = jnp.sum(occupied, axis=-1, keepdims=True).astype(jnp.float32)
            centred = jnp.where(occupied, score - jnp.sum(jnp.where(occupied, score, 0.0), -1, keepdims=True) / n, 0.0)
            spread = jnp.sqrt(jnp.sum(centred * centred, axis=-1, keepdims=True) / n)
            layers.append(jnp.max(centred / jnp.maximum(spread, 1e-6), axis=2))
        return stack(layers)


def _score(
    mean: Float[Array, "N H"], modulus: Float[Array, "N half"], k: Float[Array, "B K S H"], slots: Slots
) -> Float[Array, "B K G S"]:
    """One layer's scores, per query head, not standardised."""
    rows, heads, _, h = k.shape
    frequency, factor = frequencies(slots.model)
    turns = np.exp(1j * frequency.astype(np.float64)[:, None] * DISTANCES[None]).mean(axis=1)
    constant = lambda x: jnp.asarray(x, jnp.float32)[None, None, None]
    turned = rotate(mean[None, None], constant(turns.real), constant(turns.imag))
    cos, sin = (x / factor for x in rotation(slots.model, slots.newest[:, None]))
    query = rotate(jnp.broadcast_to(turned, (rows, *turned.shape[1:])), cos, sin)[:, 0]
    dot = jnp.einsum("BKGH,BKSH->BKGS", query.reshape(rows, heads, -1, h), k)
    rest = (modulus - _modulus(mean)).reshape(heads, -1, h // 2)
    return dot + jnp.einsum("KGF,BKSF->BKGS", rest, _modulus(k))


def _modulus(x: Array) -> Array:
    """|x_f| of each pair (i, i + H/2) of the last axis."""
    real, imaginary = jnp.split(x, 2, axis=-1)
    return jnp.sqrt(real * real + imaginary * imaginary)
