"""Every policy that jkv comes with, and variants that take other paths, ready to run over a model of any config."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jkv.models.config import ModelConfig
from jkv.models.predictor import random_predictor
from jkv.policies import (
    GKV,
    H2O,
    RKV,
    TOVA,
    DynTS,
    ExpectedAttention,
    Full,
    KeyDiff,
    KNorm,
    Lazy,
    Policy,
    RaaS,
    Random,
    Retention,
    SepLLM,
    SnapKV,
    Streaming,
    TriAttention,
    TrimKV,
    VaSE,
    Window,
)

SEPARATORS = tuple(range(5, 97, 6))
THINK_END = 50


def query_statistics(config: ModelConfig) -> dict[str, jax.Array]:
    """What triattention needs, drawn at random: the mean of the modulus is never below the modulus of the mean."""
    rng = np.random.default_rng(1)
    mean = rng.normal(size=(config.n_layers, config.n_heads, config.head_dim))
    modulus = np.hypot(*np.split(mean, 2, axis=-1))
    modulus = modulus * rng.uniform(1, 2, modulus.shape)
    return {"mean": jnp.asarray(mean, jnp.float32), "modulus": jnp.asarray(modulus, jnp.float32)}


def gates(config: ModelConfig) -> list[dict[str, jax.Array]]:
    """What trimkv needs, drawn at random."""
    rng, middle = np.random.default_rng(2), 24
    shapes = {
        "linear1.weight": (middle, config.d_model), "linear1.bias": (middle,),
        "linear2.weight": (config.n_kv_heads, middle), "bias": (config.n_kv_heads,),
    }  # fmt: skip
    draw = lambda shape: jnp.asarray(rng.normal(size=shape) * shape[-1] ** -0.5, jnp.float32)
    return [{name: draw(shape) for name, shape in shapes.items()} for _ in range(config.n_layers)]


def predictor(config: ModelConfig) -> Any:
    """What dynts needs, drawn at random."""
    return random_predictor(config.d_model)


def nothing(config: ModelConfig) -> tuple[()]:
    """Most policies have no parameters."""
    del config
    return ()


@dataclasses.dataclass(frozen=True)
class Entry:
    """A policy, and what makes its parameters for a model."""

    policy: Policy
    parameters: Callable[[ModelConfig], Any] = nothing

    def rule(self, budget: int, retain: int, *, window: int = 4, **words: Any) -> Retention:
        """The budget words, with the policy's own sinks and pinning unless told otherwise."""
        return Retention(
            budget, retain, window, **{"sinks": self.policy.sinks, "pin_prompt": self.policy.pin_prompt, **words}
        )


# The first entry of each name is the policy as its defaults make it.
ZOO = {
    "full": Entry(Full()),
    "window": Entry(Window()),
    "streaming": Entry(Streaming()),
    "random": Entry(Random()),
    "sepllm": Entry(SepLLM(SEPARATORS)),
    "h2o": Entry(H2O()),
    "snapkv": Entry(SnapKV()),
    "snapkv-16-mean-avg": Entry(SnapKV(16, "mean", "avg", 5)),
    "rkv": Entry(RKV()),
    "tova": Entry(TOVA()),
    "knorm": Entry(KNorm()),
    "keydiff": Entry(KeyDiff()),
    "expected_attention": Entry(ExpectedAttention()),
    "lazy": Entry(Lazy()),
    "raas": Entry(RaaS()),
    "triattention": Entry(TriAttention(), query_statistics),
    "vase": Entry(VaSE()),
    "vase-dkv": Entry(VaSE("dkv")),
    "gkv": Entry(GKV()),
    "trimkv": Entry(TrimKV(), gates),
    "dynts": Entry(DynTS(think_end=THINK_END), predictor),
    "dynts-random": Entry(DynTS("random", THINK_END), predictor),
    "dynts-bottom": Entry(DynTS("bottom", THINK_END), predictor),
}
EVICTING = [name for name, entry in ZOO.items() if entry.policy.evicts]
