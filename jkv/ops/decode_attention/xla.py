"""decode_attention in plain XLA, shaped by what XLA:CPU runs well; other platforms run `xla_dense`.

Two forms, chosen by static shape and dtype alone, so that a row's arithmetic never depends on its neighbours:

- whole: up to WHOLE slots of float32. Two dots over the whole buffer, no copy of it. Keys are the left operand and the
  scores come out [B, K, S, G]: the mirrored dot makes XLA:CPU transpose the keys first, at twice the cost. The barriers
  keep XLA from mirroring it back.
- blocks: otherwise. An online softmax over blocks of slots up to the longest row's length; one block is sliced out at a
  time and widened to float32 (int8 times its scales).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int32

from jkv.ops.buffer import Buffer, Int8KV, by_part, dense
from jkv.ops.decode_attention import xla_dense
from jkv.ops.rows import row_sum

WHOLE = 512  # slots
BLOCK = 256  # slots
_LOWEST = -1e30


def decode_attention(
    q: Float[Array, "B N H"],
    k: Buffer,
    v: Buffer,
    length: Int32[Array, "B"],
    *,
    scale: float,
) -> Float[Array, "B N H"]:
    batch, heads, dim = q.shape
    kv_heads, slots = k.shape[1:3]

    def on_cpu(q: jax.Array, k: Buffer, v: Buffer, length: jax.Array) -> jax.Array:
        query = q.astype(jnp.float32).reshape(batch, kv_heads, heads // kv_heads, dim) * jnp.float32(scale)
        if isinstance(k, Int8KV) or isinstance(v, Int8KV) or slots > WHOLE or k.dtype != jnp.float32:
            weighted, total = _blocks(query, k, v, length)
        else:
            weighted, total = _whole(query, k, v, length)
        out = weighted / jnp.where(total > 0, total, jnp.float32(1))[..., None]
        return out.reshape(q.shape).astype(q.dtype)

    elsewhere = lambda *arrays: xla_dense.attend(*arrays, scale=scale)[0]
    return lax.platform_dependent(q, k, v, length, cpu=on_cpu, default=elsewhere)


def attention_weights(
    q: Float[Array, "B N H"], k: Buffer, length: Int32[Array, "B"], *, scale: float
) -> Float[Array, "B N S"]:
    batch, heads, dim = q.shape
    kv_heads, slots = k.shape[1:3]

    def on_cpu(q: jax.Array, k: Buffer, length: jax.Array) -> jax.Array:
        query = q.astype(jnp.float32).reshape(batch, kv_heads, heads // kv_heads, dim) * jnp.float32(scale)
        weight = _weights(query, k, _live(length, jnp.int32(0), slots))
        total = row_sum(weight)
        return (weight / jnp.where(total > 0, total, jnp.float32(1))[..., None]).reshape(batch, heads, slots)

    # The reducer above, meant for CPU, crashes the TPU compiler when it is fused with so long a row.
    elsewhere = lambda *arrays: xla_dense.attention_weights(*arrays, scale=scale)
    return lax.platform_dependent(q, k, length, cpu=on_cpu, default=elsewhere)


def _weights(query: Float[Array, "B K G H"], k: Buffer, live: Bool[Array, "B 1 1 S"]) -> Float[Array, "B K G S"]:
    """Softmax weights before division by their total."""
    scores = _scores_by_block(query, k) if isinstance(k, Int8KV) else _scores(query, k)
    score = jnp.where(live, scores, jnp.float32(_LOWEST))
    return jnp.where(live, jnp.exp(score - _top(score)[..., None]), jnp.float32(0))


def _scores(query: Float[Array, "B K G H"], k: Float[Array, "B K S H"]) -> Float[Array, "B K G S"]:
    columns = lax.optimization_barrier(jnp.swapaxes(query, 2, 3).astype(k.dtype))
    score = lax.dot_general(k, columns, (((3,), (2,)), ((0, 1), (0, 1))), preferred_element_type=jnp.float32)
    return jnp.swapaxes(lax.optimization_barrier(score), 2, 3)


def _scores_by_block(query: Float[Array, "B K G H"], k: Int8KV) -> Float[Array, "B K G S"]:
    slots = k.shape[2]
    block = min(BLOCK, slots)

    def body(i: jax.Array, score: jax.Array) -> jax.Array:
        start = jnp.minimum(i * block, slots - block)
        return lax.dynamic_update_slice_in_dim(score, _scores(query, _block_of(k, start, block)), start, 3)

    nothing = jnp.zeros((*query.shape[:3], slots), jnp.float32)
    return lax.fori_loop(jnp.int32(0), jnp.int32(-(-slots // block)), body, nothing)


def _block_of(buffer: Buffer, start: jax.Array, block: int) -> Float[Array, "B K block H"]:
    """``block`` slots from ``start`` on, float32."""
    cut = lambda leaf, *, axis: lax.dynamic_slice_in_dim(leaf, start, block, axis)
    return dense(by_part(cut, buffer), jnp.float32)


def _weigh(weight: Float[Array, "B K G S"], v: Float[Array, "B K S H"]) -> Float[Array, "B K G H"]:
    return lax.dot_general(weight, v, (((3,), (2,)), ((0, 1), (0, 1))))


def _top(score: Float[Array, "B K G S"]) -> Float[Array, "B K G"]:
    """The highest score, by a reducer of our own: that library would take a plain maximum and the exp after it."""
    lowest = np.float32(_LOWEST)
    return lax.reduce(score, lowest, lambda a, b: lax.max(lax.max(a, lowest), b), (3,))


def _live(length: Int32[Array, "B"], start: jax.Array, count: int) -> Bool[Array, "B 1 1 count"]:
    slot = start + jnp.arange(count, dtype=jnp.int32)
    return (slot[None, :] < length[:, None])[:, None, None, :]


def _whole(
    query: Float[Array, "B K G H"], k: Float[Array, "B K S H"], v: Float[Array, "B K S H"], length: Int32[Array, "B"]
) -> tuple[Float[Array, "B K G H"], Float[Array, "B K G"]]:
    live = _live(length, jnp.int32(0), k.shape[2])
    weight = _weights(query, k, live)
    return _mend(_weigh(weight, v), weight, v, length), row_sum(weight)


def _mend(
    weighted: Float[Array, "B K G H"],
    weight: Float[Array, "B K G S"],
    v: Float[Array, "B K S H"],
    length: Int32[Array, "B"],
) -> Float[Array, "B K G H"]:
    """Redoes, with dead values zeroed, the rows where a non-finite dead value met its zero weight. Almost always none.

    Masking the values beforehand would copy the buffer at every step.
    """
    batch = weighted.shape[0]
    row = jnp.arange(batch, dtype=jnp.int32)
    broken = ~jnp.all(jnp.isfinite(weighted), axis=(1, 2, 3))

    def next_row(after: jax.Array) -> jax.Array:
        return jnp.min(jnp.where(broken & (row > after), row, jnp.int32(batch)))

    def body(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        b, weighted = state
        live = _live(lax.dynamic_slice_in_dim(length, b, 1), jnp.int32(0), v.shape[2])
        values = jnp.where(jnp.swapaxes(live, 2, 3), lax.dynamic_slice_in_dim(v, b, 1), jnp.float32(0))
        mended = _weigh(lax.dynamic_slice_in_dim(weight, b, 1), values)
        return next_row(b), lax.dynamic_update_slice_in_dim(weighted, mended, b, 0)

    return lax.while_loop(lambda state: state[0] < batch, body, (next_row(jnp.int32(-1)), weighted))[1]


def _blocks(
    query: Float[Array, "B K G H"], k: Buffer, v: Buffer, length: Int32[Array, "B"]
) -> tuple[Float[Array, "B K G H"], Float[Array, "B K G"]]:
    slots = k.shape[2]
    block = min(BLOCK, slots)

    def body(i: jax.Array, state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        top, total, weighted = state
        start = jnp.minimum(i * block, slots - block)  # the last block may overlap the one before
        fresh = start + jnp.arange(block, dtype=jnp.int32) >= i * block
        live = _live(length, start, block) & fresh[None, None, None, :]
        keys, values = _block_of(k, start, block), _block_of(v, start, block)
        values = jnp.where(jnp.swapaxes(live, 2, 3), values, jnp.float32(0))
        score = jnp.where(live, _scores(query, keys), jnp.float32(_LOWEST))
        higher = jnp.maximum(top, _top(score))
        shrink = jnp.exp(top - higher)
        weight = jnp.where(live, jnp.exp(score - higher[..., None]), jnp.float32(0))
        total = total * shrink + row_sum(weight)
        return higher, total, weighted * shrink[..., None] + _weigh(weight, values)

    shape = query.shape[:3]
    start = (jnp.full(shape, _LOWEST, jnp.float32), jnp.zeros(shape, jnp.float32), jnp.zeros(query.shape, jnp.float32))
    count = (jnp.minimum(jnp.max(length), slots) + block - 1) // block
    _, total, weighted = lax.fori_loop(jnp.int32(0), count, body, start)
    return weighted, total
