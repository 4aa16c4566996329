"""decode_attention in plain XLA for GPUs and TPUs, after the new token is inserted: over all slots, dead ones too.

No copy of the buffer is made, in any dtype: it is read as it is, and sums are in float32. Values of dead slots may be
NaN, and 0 times NaN is NaN, so they need a mask. But as the operand of a dot, masked values would be written to memory
first. So

- on TPU the dot reads the values unmasked, and rows whose result isn't finite are computed again, one at a time;
- elsewhere the weighted values are summed without a dot, and the mask is applied as they are read.

An int8 buffer's scales multiply scores and weights. Its integers are converted as they are read: on TPU into the
operand of a dot, elsewhere into a sum.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int8, Int32

from jkv.ops.buffer import Buffer, Int8KV


def attend(
    q: Float[Array, "B N H"],
    k: Buffer,
    v: Buffer,
    length: Int32[Array, "B"],
    *,
    scale: float,
    weights: bool = False,
) -> tuple[Float[Array, "B N H"], Float[Array, "B N S"] | None]:
    """Attention over each row's first ``length`` slots, which hold the new token already.

    Dead slots may hold NaN. A row of length 0 gives zeros.

    Args:
      q: one query per row and query head.
      k: the buffer of keys.
      v: the buffer of values.
      length: occupied slots of each row.
      scale: what scores are multiplied by.
      weights: whether to return the softmax weights, too.

    Returns:
      The output in the dtype of q, and the weights in float32 or None.
    """
    batch = q.shape[0]
    weight = attention_weights(q, k, length, scale=scale)
    live = jnp.arange(k.shape[2], dtype=jnp.int32)[None, :] < length[:, None]
    grouped = weight.reshape(batch, k.shape[1], -1, k.shape[2])
    if isinstance(v, Int8KV):
        # A dead slot's scale may be NaN.
        scaled = jnp.where(live[:, None, None], grouped * v.scale, jnp.float32(0)).astype(q.dtype)
        dot = lambda weight, v: _einsum("BKGS,BKSH->BKGH", weight, v.astype(weight.dtype))
        out = lax.platform_dependent(scaled, v.values, tpu=dot, default=_sum_int8)
    else:
        out = lax.platform_dependent(grouped, v, live, tpu=_dot, default=_sum)
    return out.reshape(q.shape).astype(q.dtype), weight if weights else None


def attention_weights(
    q: Float[Array, "B N H"], k: Buffer, length: Int32[Array, "B"], *, scale: float
) -> Float[Array, "B N S"]:
    """The softmax weights of the slots, float32, 0 at dead ones."""
    batch, heads, dim = q.shape
    kv_heads, slots = k.shape[1:3]
    query = (q.astype(jnp.float32) * jnp.float32(scale)).astype(k.dtype)
    query = query.reshape(batch, kv_heads, heads // kv_heads, dim)
    live = (jnp.arange(slots, dtype=jnp.int32)[None, :] < length[:, None])[:, None, None]
    if isinstance(k, Int8KV):
        dot = lambda query, k: _einsum("BKGH,BKSH->BKGS", query, k.astype(query.dtype))
        score = lax.platform_dependent(query, k.values, tpu=dot, default=_scores_int8) * k.scale
    else:
        score = _einsum("BKGH,BKSH->BKGS", query, k)
    score = jnp.where(live, score, jnp.float32(-1e30))
    weight = jnp.where(live, jnp.exp(score - jnp.max(score, axis=-1, keepdims=True)), jnp.float32(0))
    total = jnp.sum(weight, axis=-1, keepdims=True)
    return (weight / jnp.where(total > 0, total, jnp.float32(1))).reshape(batch, heads, slots)


def _einsum(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """The einsum with its sums in float32."""
    return jnp.einsum(spec, a, b, precision=_precision(b), preferred_element_type=jnp.float32)


def _scores_int8(query: Float[Array, "B K G H"], k: Int8[Array, "B K S H"]) -> Float[Array, "B K G S"]:
    """The queries' products with the keys' integers, as one sum per query head."""
    wide = query.astype(jnp.float32)
    each = (jnp.sum(wide[:, :, g, None] * k.astype(jnp.float32), axis=3) for g in range(query.shape[2]))
    return jnp.stack(list(each), axis=2)


def _sum_int8(weight: Float[Array, "B K G S"], v: Int8[Array, "B K S H"]) -> Float[Array, "B K G H"]:
    """The weighted sum of the values' integers, as one sum per query head."""
    wide = weight.astype(jnp.float32)
    each = (jnp.sum(wide[:, :, g, :, None] * v.astype(jnp.float32), axis=2) for g in range(weight.shape[2]))
    return jnp.stack(list(each), axis=2)


def _precision(x: jax.Array) -> lax.Precision | None:
    """HIGHEST for float32, whose factors accelerators would otherwise round first."""
    return lax.Precision.HIGHEST if x.dtype == jnp.float32 else None


def _sum(
    weight: Float[Array, "B K G S"], v: Float[Array, "B K S H"], live: Bool[Array, "B S"]
) -> Float[Array, "B K G H"]:
    """The weighted sum of the values, masked as they are read."""
    values = jnp.where(live[:, None, :, None], v, jnp.zeros((), v.dtype)).astype(jnp.float32)
    # One sum per query head. XLA fuses them two at a time; of a single sum over all it would write out the products.
    return jnp.stack([jnp.sum(weight[:, :, g, :, None] * values, axis=2) for g in range(weight.shape[2])], axis=2)


def _dot(
    weight: Float[Array, "B K G S"], v: Float[Array, "B K S H"], live: Bool[Array, "B S"]
) -> Float[Array, "B K G H"]:
    """The weighted sum of the values by a dot; rows whose sum isn't finite are computed again with masked values."""
    batch = weight.shape[0]
    weight = weight.astype(v.dtype)
    row = jnp.arange(batch, dtype=jnp.int32)
    cut = lambda x, b: lax.dynamic_slice_in_dim(x, b, 1)

    def weigh(weight: jax.Array, v: jax.Array) -> jax.Array:
        """The dot."""
        return _einsum("BKGS,BKSH->BKGH", weight, v)

    def next_row(after: jax.Array) -> jax.Array:
        """The first row later than ``after`` whose sum isn't finite; B if there is none."""
        return jnp.min(jnp.where(broken & (row > after), row, jnp.int32(batch)))

    def mend(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Compute one row again. state: the row, and the sums."""
        b, out = state
        values = jnp.where(cut(live, b)[:, None, :, None], cut(v, b), jnp.zeros((), v.dtype))
        return next_row(b), lax.dynamic_update_slice_in_dim(out, weigh(cut(weight, b), values), b, 0)

    out = weigh(weight, v)
    broken = ~jnp.all(jnp.isfinite(out), axis=(1, 2, 3))
    return lax.while_loop(lambda state: state[0] < batch, mend, (next_row(jnp.int32(-1)), out))[1]
