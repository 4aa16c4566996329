"""The small parts of a decoder block: projection, RMS normalisation, gated feed-forward."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from jkv.axes import Array, Float
from jkv.models.config import ModelConfig
from jkv.models.quantized import Weight, contract
from jkv.ops.rows import project_rows, row_sum


def _like(parameter: jax.Array, x: jax.Array) -> jax.Array:
    # Leading axes of size one: rank promotion is an error in the tests, so broadcasting is spelled out.
    return jax.lax.expand_dims(parameter, range(x.ndim - parameter.ndim))


def project(spec: str, x: jax.Array, kernel: Weight, **options) -> jax.Array:
    """``einsum(spec, x, kernel)``; a decode step's (T = 1) in row groups where that keeps rows independent."""
    run = functools.partial(contract, spec, **options)
    return project_rows(run, x, kernel) if x.shape[1] == 1 else run(x, kernel)


class Projection(nnx.Module):
    """``einsum(spec, x, kernel) + bias``. The spec names the layout, e.g. 'BTD,DNH->BTNH'."""

    def __init__(self, spec: str, shape: tuple[int, ...], *, bias: tuple[int, ...] | None, dtype, rngs: nnx.Rngs):
        self.spec = spec
        inputs, output = spec.split(",")[0], spec.split("->")[1]
        axes = spec.split(",")[1].split("->")[0]
        fan_in = math.prod(
            size for axis, size in zip(axes, shape, strict=True) if axis in inputs and axis not in output
        )
        scale = jnp.asarray(fan_in**-0.5, dtype)
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), shape, dtype) * scale)
        self.bias = nnx.Param(jnp.zeros(bias, dtype)) if bias else None

    def __call__(self, x: Array) -> Array:
        out = project(self.spec, x, self.kernel.get_value())
        return out if self.bias is None else out + _like(self.bias[...], out)


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation of the last axis, computed in float32 (arXiv:1910.07467)."""

    def __init__(self, size: int, eps: float, *, dtype):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones((size,), dtype))

    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        wide = x.astype(jnp.float32)
        normed = wide * jax.lax.rsqrt(row_sum(wide * wide)[..., None] / x.shape[-1] + self.eps)
        return _like(self.scale[...], x) * normed.astype(x.dtype)


class FeedForward(nnx.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig, *, dtype, rngs: nnx.Rngs):
        d, f = config.d_model, config.d_ff
        wide = (f,) if config.mlp_bias else None
        narrow = (d,) if config.mlp_bias else None
        self.gate = Projection("BTD,DF->BTF", (d, f), bias=wide, dtype=dtype, rngs=rngs)
        self.up = Projection("BTD,DF->BTF", (d, f), bias=wide, dtype=dtype, rngs=rngs)
        self.down = Projection("BTF,FD->BTD", (f, d), bias=narrow, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))
