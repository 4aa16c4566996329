"""decode_attention in plain XLA, after the new token is inserted: in the form that is fast on CPU.

Other platforms run `xla_dense`. On CPU there are two forms. Shapes and dtype alone decide between them, so that a row's
arithmetic doesn't depend on the other rows:

- whole, for a float32 buffer of at most WHOLE slots: two dots over the whole buffer, without a copy of it. Keys are the
  left operand, so scores come out as [B, K, S, G]. With keys on the right XLA:CPU transposes the keys first, which
  costs twice as much; optimization barriers keep XLA from swapping the operands.
- blocks, for all others: an online softmax over blocks of slots, up to the longest row's length. One block at a time is
  sliced out and converted to float32 (int8 is multiplied by its scales).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int32

from jkv.ops.buffer import Buffer, Int8KV, by_part, dense
from jkv.ops.decode_attention import xla_dense
from jkv.ops.rows import row_sum

WHOLE = 512  # slots: the largest buffer that is read as a whole
BLOCK = 256  # slots at a time in larger ones
_LOWEST = -1e30  # the score of a dead slot: finite, so that no difference of scores is NaN


def decode_attention(
    q: Float[Array, "B N H"],
    k: Buffer,
    v: Buffer,
    length: Int32[Array, "B"],
    *,
    scale: float,
) -> Float[Array, "B N H"]:
    """Attention over each row's first ``length`` slots, which hold the new token already."""
    batch, heads, dim = q.shape
    kv_heads, slots = k.shape[1:3]

    def on_cpu(q: jax.Array, k: Buffer, v: Buffer, length: jax.Array) -> jax.Array:
        """In one of the two forms for CPU."""
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
    """The softmax weights of the slots, float32, 0 at dead ones."""
    batch, heads, dim = q.shape
    kv_heads, slots = k.shape[1:3]

    def on_cpu(q: jax.Array, k: Buffer, length: jax.Array) -> jax.Array:
        """With sums that don't depend on the other rows."""
        query = q.astype(jnp.float32).reshape(batch, kv_heads, heads // kv_heads, dim) * jnp.float32(scale)
        weight = _weights(query, k, _live(length, jnp.int32(0), slots))
        total = row_sum(weight)
        return (weight / jnp.where(total > 0, total, jnp.float32(1))[..., None]).reshape(batch, heads, slots)

    # Only CPU may lower `row_sum` here: the TPU compiler crashes on its reducer when it is fused with rows this long.
    elsewhere = lambda *arrays: xla_dense.attention_weights(*arrays, scale=scale)
    return lax.platform_dependent(q, k, length, cpu=on_cpu, default=elsewhere)


def _weights(query: Float[Array, "B K G H"], k: Buffer, live: Bool[Array, "B 1 1 S"]) -> Float[Array, "B K G S"]:
    """Softmax weights before they are divided by their total."""
    scores = _scores_by_block(query, k) if isinstance(k, Int8KV) else _scores(query, k)
    score = jnp.where(live, scores, jnp.float32(_LOWEST))
    return jnp.where(live, jnp.exp(score - _top(score)[..., None]), jnp.float32(0))


def _scores(query: Float[Array, "B K G H"], k: Float[Array, "B K S H"]) -> Float[Array, "B K G S"]:
    """The queries' products with all keys, with the keys as the dot's left operand."""
    columns = lax.optimization_barrier(jnp.swapaxes(query, 2, 3).astype(k.dtype))
    score = lax.dot_general(k, columns, (((3,), (2,)), ((0, 1), (0, 1))), preferred_element_type=jnp.float32)
    return jnp.swapaxes(lax.optimization_barrier(score), 2, 3)


def _scores_by_block(query: Float[Array, "B K G H"], k: Int8KV) -> Float[Array, "B K G S"]:
    """The same for int8, of which one block of slots at a time is dequantised."""
    slots = k.shape[2]
    block = min(BLOCK, slots)

    def body(i: jax.Array, score: jax.Array) -> jax.Array:
        """Write the scores of block i; the last block may overlap the one before."""
        start = jnp.minimum(i * block, slots - block)
        return lax.dynamic_update_slice_in_dim(score, _scores(query, _block_of(k, start, block)), start, 3)

    nothing = jnp.zeros((*query.shape[:3], slots), jnp.float32)
    return lax.fori_loop(jnp.int32(0), jnp.int32(-(-slots // block)), body, nothing)


def _block_of(buffer: Buffer, start: jax.Array, block: int) -> Float[Array, "B K block H"]:
    """``block`` slots from ``start`` on, in float32."""
    cut = lambda leaf, *, axis: lax.dynamic_slice_in_dim(leaf, start, block, axis)
    return dense(by_part(cut, buffer), jnp.float32)


def _weigh(weight: Float[Array, "B K G S"], v: Float[Array, "B K S H"]) -> Float[Array, "B K G H"]:
    """The weighted sum of the values."""
    return lax.dot_general(weight, v, (((3,), (2,)), ((0, 1), (0, 1))))


def _top(score: Float[Array, "B K G S"]) -> Float[Array, "B K G"]:
    """The highest score of each query.

    XLA:CPU would hand a plain maximum, and the exp after it, to the library that `jkv.ops.rows` avoids. It doesn't
    recognise this reducer.
    """
    lowest = np.float32(_LOWEST)
    return lax.reduce(score, lowest, lambda a, b: lax.max(lax.max(a, lowest), b), (3,))


def _live(length: Int32[Array, "B"], start: jax.Array, count: int) -> Bool[Array, "B 1 1 count"]:
    """Which of the ``count`` slots from ``start`` on are occupied."""
    slot = start + jnp.arange(count, dtype=jnp.int32)
    return (slot[None, :] < length[:, None])[:, None, None, :]


def _whole(
    query: Float[Array, "B K G H"], k: Float[Array, "B K S H"], v: Float[Array, "B K S H"], length: Int32[Array, "B"]
) -> tuple[Float[Array, "B K G H"], Float[Array, "B K G"]]:
    """The weighted sum of the values, and the sum of the weights, from the buffer as a whole."""
    live = _live(length, jnp.int32(0), k.shape[2])
    weight = _weights(query, k, live)
    return _mend(_weigh(weight, v), weight, v, length), row_sum(weight)


def _mend(
    weighted: Float[Array, "B K G H"],
    weight: Float[Array, "B K G S"],
    v: Float[Array, "B K S H"],
    length: Int32[Array, "B"],
) -> Float[Array, "B K G H"]:
    """Compute again, with zeros for dead values, the rows whose weighted sum isn't finite.

    A dead slot has weight 0, but 0 times NaN or infinity is NaN. Such values are rare, and to mask dead values
    beforehand would copy the buffer at every step.
    """
    batch = weighted.shape[0]
    row = jnp.arange(batch, dtype=jnp.int32)
    broken = ~jnp.all(jnp.isfinite(weighted), axis=(1, 2, 3))

    def next_row(after: jax.Array) -> jax.Array:
        """The first such row later than ``after``; B if there is none."""
        return jnp.min(jnp.where(broken & (row > after), row, jnp.int32(batch)))

    def body(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Compute one row again. state: the row, and the weighted sums."""
        b, weighted = state
        live = _live(lax.dynamic_slice_in_dim(length, b, 1), jnp.int32(0), v.shape[2])
        values = jnp.where(jnp.swapaxes(live, 2, 3), lax.dynamic_slice_in_dim(v, b, 1), jnp.float32(0))
        mended = _weigh(lax.dynamic_slice_in_dim(weight, b, 1), values)
        return next_row(b), lax.dynamic_update_slice_in_dim(weighted, mended, b, 0)

    return lax.while_loop(lambda state: state[0] < batch, body, (next_row(jnp.int32(-1)), weighted))[1]


def _blocks(
    query: Float[Array, "B K G H"], k: Buffer, v: Buffer, length: Int32[Array, "B"]
) -> tuple[Float[Array, "B K G H"], Float[Array, "B K G"]]:
    """The weighted sum of the values, and the sum of the weights, by an online softmax over blocks of slots."""
    slots = k.shape[2]
    block = min(BLOCK, slots)

    def body(i: jax.Array, state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Add block i. state: each query's highest score so far, its sum of weights, its weighted sum of values."""
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
