"""The small parts of a decoder block: projection, RMS normalisation, gated feed-forward."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jkv.axes import Array, Float
from jkv.models.config import ModelConfig
from jkv.models.quantized import Weight, contract
from jkv.ops.rows import project_rows, row_sum


def _aligned(parameter: jax.Array, x: jax.Array) -> jax.Array:
    """The parameter with leading axes of size 1, as many as it takes to have the rank of x.

    Tests forbid NumPy's implicit rank promotion, so broadcasting is spelled out.
    """
    return jax.lax.expand_dims(parameter, range(x.ndim - parameter.ndim))


def project(spec: str, x: jax.Array, kernel: Weight, *, preferred_element_type: DTypeLike | None = None) -> jax.Array:
    """``contract(spec, x, kernel)``, of a decode step (T = 1) in the row groups of `jkv.ops.rows.project_rows`.

    Args:
        spec: the einsum's; it ends with the kernel's channels, in the kernel's order.
        x: [B, T, ...]; a decode step's has at least MIN_ROWS rows (`jkv.ops.rows.pad_rows`).
        kernel: the weight, an array or int8.
        preferred_element_type: the result's dtype; None means that of x.
    """
    run = functools.partial(contract, spec, preferred_element_type=preferred_element_type)
    return project_rows(run, x, kernel) if x.shape[1] == 1 else run(x, kernel)


class Projection(nnx.Module):
    """``einsum(spec, x, kernel) + bias``."""

    def __init__(
        self, spec: str, shape: tuple[int, ...], *, bias: tuple[int, ...] | None, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        """A projection with random weights, of variance one over the number of inputs, and a bias of zeros.

        Args:
            spec: the einsum's, in axis letters, 'BTD,DNH->BTNH' for example.
            shape: the kernel's.
            bias: the bias's shape; None for no bias.
            dtype: of kernel and bias.
            rngs: the source of the random weights.
        """
        self.spec = spec
        inputs, output = spec.split(",")[0], spec.split("->")[1]
        axes = spec.split(",")[1].split("->")[0]
        fan_in = math.prod(
            size for axis, size in zip(axes, shape, strict=True) if axis in inputs and axis not in output
        )
        scale = jnp.asarray(fan_in**-0.5, dtype)
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), shape, dtype) * scale)
        self.bias = nnx.Param(jnp.zeros(bias, dtype)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """The projection of x, whose shape and the result's are those of the spec."""
        out = project(self.spec, x, self.kernel.get_value())
        return out if self.bias is None else out + _aligned(self.bias[...], out)


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation of the last axis, computed in float32 (arXiv:1910.07467)."""

    def __init__(self, size: int, eps: float, *, dtype: DTypeLike):
        """A norm with a scale of ones.

        Args:
            size: of the last axis.
            eps: what is added to the mean square.
            dtype: of the scale.
        """
        self.eps = eps
        self.scale = nnx.Param(jnp.ones((size,), dtype))

    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """x over its root mean square, times the scale, in the dtype of x."""
        wide = x.astype(jnp.float32)
        normed = wide * jax.lax.rsqrt(row_sum(wide * wide)[..., None] / x.shape[-1] + self.eps)
        return _aligned(self.scale[...], x) * normed.astype(x.dtype)


class FeedForward(nnx.Module):
    """The gated feed-forward layer (SwiGLU, arXiv:2002.05202): down(silu(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        d, f = config.d_model, config.d_ff
        wide = (f,) if config.mlp_bias else None
        narrow = (d,) if config.mlp_bias else None
        self.gate = Projection("BTD,DF->BTF", (d, f), bias=wide, dtype=dtype, rngs=rngs)
        self.up = Projection("BTD,DF->BTF", (d, f), bias=wide, dtype=dtype, rngs=rngs)
        self.down = Projection("BTF,FD->BTD", (f, d), bias=narrow, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """The layer's output, which is added to the residual stream."""
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))
