"""Blocks are alike, so a program traces one for all its layers; another program traces its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jkv.models import Decoder
from jkv.models.attention import CausalAttention
from jkv.models.config import ModelConfig
from jkv.ops import dispatch
from jkv.pytree import pytree

TOKENS, POSITIONS = jnp.arange(5)[None], jnp.arange(5)[None]
SEEN: list[str] = []


@pytree
class Watched:
    """Causal attention that notes what it is traced for."""

    def __call__(self, q, k, v, kv, x):
        SEEN.append(dispatch.platform())
        return CausalAttention()(q, k, v, kv, x)


class NoPytree(Watched):
    """What JAX can't take as an argument."""


@pytest.fixture(autouse=True)
def _nothing_seen():
    SEEN.clear()


def model(layers: int) -> Decoder:
    return Decoder(ModelConfig("llama", 17, 16, 24, layers, 4, 2, 8, 1e4), rngs=nnx.Rngs(0))


def program(decoder: Decoder, attend):
    """A new one each time."""
    graph, weights = nnx.split(decoder)
    return jax.jit(lambda weights: nnx.merge(graph, weights)(TOKENS, POSITIONS, attend)[0]), weights


@pytest.mark.parametrize("layers", [1, 4])
def test_once_for_all_layers(layers):
    decoder = model(layers)
    run, weights = program(decoder, Watched())
    found = run(weights)
    assert len(SEEN) == 1
    expected, _ = decoder(TOKENS, POSITIONS, Watched())  # no program: layer by layer
    assert len(SEEN) == 1 + layers
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_an_attend_that_is_no_pytree_is_traced_by_every_layer():
    run, weights = program(model(3), NoPytree())
    run.trace(weights)
    assert len(SEEN) == 3


def test_a_program_for_another_platform_is_traced_for_it():
    decoder = model(2)
    run, weights = program(decoder, Watched())
    run.trace(weights)
    with dispatch.target("gpu"):
        run, weights = program(decoder, Watched())
        run.trace(weights)
    assert SEEN == ["cpu", "gpu"]
