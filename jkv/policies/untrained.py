"""Policies with random parameters of the right shapes, for a model that nothing was trained for.

For benchmarks, which measure what a policy costs, and for plans, which compile its programs. What such a policy keeps
means nothing.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jkv.models.config import ModelConfig
from jkv.models.predictor import random_predictor
from jkv.policies.base import Policy
from jkv.policies.sepllm import SepLLM


def bind_untrained(policy: Policy, config: ModelConfig) -> tuple[Policy, Any]:
    """In place of ``policy.bind``: the policy ready for a model of this config, without any file.

    Returns:
        The policy, and its parameters as ``bind`` returns them: random weights for dynts, trimkv and triattention;
        token ids 5 to 11 as separators for sepllm; none for the others.
    """
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    match policy.name:
        case "dynts":
            return policy, random_predictor(config.d_model)
        case "trimkv":
            d, k = config.d_model, config.n_kv_heads
            gate = lambda: {
                "linear1.weight": draw(512, d) * d**-0.5, "linear1.bias": draw(512),
                "linear2.weight": draw(k, 512) * 512**-0.5, "bias": draw(k) + 5,
            }  # fmt: skip
            return policy, [gate() for _ in range(config.n_layers)]
        case "triattention":
            shape = (config.n_layers, config.n_heads, config.head_dim)
            modulus = jnp.abs(draw(*shape[:2], shape[2] // 2)) + 3
            return policy, {"mean": draw(*shape), "modulus": modulus}
        case "sepllm":
            return SepLLM(separators=tuple(range(5, 12))), ()
    return policy, ()
