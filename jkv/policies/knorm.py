"""knorm: keys of small L2 norm stay (arXiv:2406.11430).

Score = -||k||, of the key as cached. RoPE does not change a norm (YaRN scales all alike). The source compresses a
prompt, and its code can leave layers out; here every layer is scored, at every eviction.
"""

import dataclasses

import jax.numpy as jnp

from jkv.axes import Array, Float
from jkv.policies.base import Needs, Policy, Slots
from jkv.policies.keep_sets import stack


@dataclasses.dataclass(frozen=True)
class KNorm(Policy):
    """No state, no attention."""

    name = "knorm"
    needs = Needs(keys=True)

    def score(self, state: tuple[()], slots: Slots) -> Float[Array, "B L K S"]:
        """Minus the norm of each key, per layer and KV head."""
        del state
        assert slots.keys is not None
        return stack([-jnp.linalg.norm(k.astype(jnp.float32), axis=-1) for k in slots.keys])
