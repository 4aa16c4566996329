"""trimkv: a learned gate gives each token a rate at which it is forgotten (TrimKV, arXiv:2512.03324).

One gate a layer computes, from what enters the layer's attention, how fast each KV head forgets a token:

    log beta_i = logsigmoid(W2 silu(W1 x_i + b1) + b),  D -> 512 -> K
    score = (t - i) log beta_i,  t the newest position

With granularity shared, log beta is averaged over layers and KV heads; the source has one keep set for each layer and
KV head. Its code (ngocbh/trimkv) adds a small constant to the age t - i.

Gates come as safetensors with the names of the source: model.layers.N.self_attn.retention_gate.{linear1.weight,
linear1.bias, linear2.weight, bias}. Its .pth files are pickles, which jkv does not open: save their tensors as
safetensors first. Its second form of gate (RetentionGate2) reads keys and values; it has other shapes and is refused.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jkv.axes import Array, Float
from jkv.errors import UserError
from jkv.files.tensors import read_tensors, tensor_shapes
from jkv.models.config import ModelConfig
from jkv.models.layers import project
from jkv.ops.rows import pad_rows, row_dot
from jkv.policies.base import Context, Needs, NewTokens, Policy, Shape, Slots
from jkv.policies.keep_sets import stack

_NAMES = ("linear1.weight", "linear1.bias", "linear2.weight", "bias")


@dataclasses.dataclass(frozen=True)
class TrimKV(Policy):
    """State: log beta of each slot. Parameters: a gate a layer, from ``--predictor FILE.safetensors``."""

    name = "trimkv"
    needs = Needs(inputs=True)
    takes_predictor = True

    def bind(self, context: Context) -> tuple["TrimKV", list[dict[str, jax.Array]]]:
        """The policy, and each layer's gate (``load_gates``).

        Raises:
            UserError: ``--predictor`` is missing, or its file is not there or not this model's.
        """
        if context.predictor is None:
            raise UserError(
                "policy trimkv needs learned gates", where="--predictor", mend="give them as FILE.safetensors"
            )
        return self, load_gates(context)

    def init(self, shape: Shape) -> Float[Array, "B l k S"]:
        """log beta of empty slots."""
        return shape.per_slot()

    def observe(self, state: Float[Array, "B l k S"], new: NewTokens) -> Float[Array, "B l k S"]:
        """log beta, with that of the new tokens."""
        assert new.inputs is not None
        gates: list[dict[str, jax.Array]] = new.parameters
        log_beta = stack([retention_gate(gate, x) for gate, x in zip(gates, new.inputs, strict=True)])  # [B, L, K, T]
        if new.slot.shape[1:3] == (1, 1):
            log_beta = jnp.mean(log_beta, axis=(1, 2), keepdims=True)
        return new.write(state, log_beta)

    def score(self, state: Float[Array, "B l k S"], slots: Slots) -> Float[Array, "B l k S"]:
        """Age times log beta."""
        age = (slots.newest[:, None, None, None] - slots.positions).astype(jnp.float32)
        return age * state


def retention_gate(gate: dict[str, jax.Array], x: Float[Array, "B T D"]) -> Float[Array, "B K T"]:
    """log beta of each token and KV head, float32, at most 0.

    Args:
        gate: one layer's weights, by the names in ``_NAMES``.
        x: what enters the layer's attention.
    """
    rows, x = x.shape[0], pad_rows(x)
    wide = project("BTD,MD->BTM", x.astype(jnp.float32), gate["linear1.weight"]) + gate["linear1.bias"][None, None]
    wide = jax.nn.silu(wide)
    out = jnp.stack([row_dot(wide, head) for head in gate["linear2.weight"]], axis=1) + gate["bias"][None, :, None]
    return jax.nn.log_sigmoid(out)[:rows]


def load_gates(context: Context) -> list[dict[str, jax.Array]]:
    """Each layer's gate: linear1.weight [M, D], linear1.bias [M], linear2.weight [K, M], bias [K], M the gate's width.

    Args:
        context: with ``predictor`` a safetensors file, or a directory with trimkv_weights.safetensors in it.

    Raises:
        UserError: the file is not there, or its tensors are not those of this model's gates.
    """
    config: ModelConfig = context.config
    path: Any = context.predictor
    if path.is_dir():
        path = path / "trimkv_weights.safetensors"
    if not path.exists():
        raise UserError("no such file", where=str(path), mend="give the gates with --predictor FILE.safetensors")
    prefix = "model.layers.{}.self_attn.retention_gate."
    first = tensor_shapes(path).get(prefix.format(0) + "linear1.bias", (512,))
    middle = first[0] if first else 512
    shapes = dict(
        zip(
            _NAMES,
            ((middle, config.d_model), (middle,), (config.n_kv_heads, middle), (config.n_kv_heads,)),
            strict=True,
        )
    )
    layers = range(config.n_layers)
    tensors = read_tensors(path, {prefix.format(i) + name: shapes[name] for i in layers for name in _NAMES})
    return [{name: jnp.asarray(tensors[prefix.format(i) + name]) for name in _NAMES} for i in layers]
