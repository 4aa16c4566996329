"""The KV buffer: exactly ``budget`` slots per row, layer and KV head, and the position of the token in each slot.

Slots ``0 .. length-1`` of a row are occupied. The rest are dead: they may hold anything, and no result depends on
them. Keys are stored after RoPE, so the order of slots doesn't matter to attention. Every KV head of a row has the same
number of occupied slots. Keys and values are arrays of the model's dtype, or int8 with scales (`jkv.ops.buffer`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jkv.axes import Array, Float, Int
from jkv.models.config import ModelConfig
from jkv.ops.buffer import Buffer, dense, empty
from jkv.pytree import pytree


@pytree
class LayerKV:
    """One layer's buffer.

    Attributes:
        k: keys after RoPE, [B, K, S, H].
        v: values, [B, K, S, H].
        queries: the last n queries after RoPE; that of position p is at place p mod n (a ring). None unless the policy
            asks for it (``Needs.queries`` = n).
    """

    k: Buffer
    v: Buffer
    queries: Float[Array, "B n N H"] | None = None


@pytree
class KVCache:
    """All layers' buffers, and for each row the positions of the tokens in its slots.

    Attributes:
        layers: one buffer a layer. They are separate arrays because XLA copies a stacked one that a loop carries. Empty
            where only a row's metadata is passed around (`jkv.engine.state.DecodeState`).
        positions: for each keep set and slot, the token's position in its sequence. There is one keep set a row
            (l = k = 1, granularity shared) or one a layer and KV head (l = L, k = K). Dead slots hold -1 or a stale
            position.
        length: occupied slots of each row.
    """

    layers: tuple[LayerKV, ...]
    positions: Int[Array, "B l k S"]
    length: Int[Array, " B"]

    @property
    def budget(self) -> int:
        """S, the number of slots a row owns."""
        return self.positions.shape[-1]

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values, scales included, without the ring of queries."""
        buffers = jax.tree.leaves([(layer.k, layer.v) for layer in self.layers])
        return sum(x.size * x.dtype.itemsize for x in buffers)

    def row(self, row: int) -> "RowView":
        """Copy one row's occupied slots to the host, in slot order. For tests and notebooks."""
        n = int(self.length[row])
        return RowView(
            positions=np.asarray(self.positions[row, :, :, :n]),
            k=np.stack([_dense_row(layer.k, row)[:, :n] for layer in self.layers]),
            v=np.stack([_dense_row(layer.v, row)[:, :n] for layer in self.layers]),
        )


def _dense_row(buffer: Buffer, row: int) -> np.ndarray:
    """One row's keys or values as float32 [K, S, H], on the host."""
    return np.asarray(dense(jax.tree.map(lambda x: x[row : row + 1], buffer))[0], np.float32)


class RowView(NamedTuple):
    """One row's n occupied slots, on the host.

    Attributes:
        positions: of the tokens, in slot order.
        k: keys after RoPE.
        v: values.
    """

    positions: Int[np.ndarray, "l k n"]
    k: Float[np.ndarray, "L K n H"]
    v: Float[np.ndarray, "L K n H"]


def empty_cache(
    config: ModelConfig,
    batch: int,
    budget: int,
    *,
    dtype: DTypeLike,
    kv: str | None = None,
    per_head: bool = False,
    recent_queries: int = 0,
) -> KVCache:
    """A buffer without tokens: all slots are dead.

    Args:
        config: the model's sizes.
        batch: B, rows.
        budget: S, slots a row.
        dtype: of keys and values, as attention reads them.
        kv: how they are stored: None as arrays of ``dtype``, L*B*K*S*H*2*itemsize bytes, or 'int8', L*B*K*S*(H+4)*2
            bytes (H integers and a scale of 4 bytes each).
        per_head: whether every layer and KV head has a keep set of its own.
        recent_queries: n, the length of the ring of queries; 0 for none. A ring takes L*B*n*N*H*itemsize bytes more.
    """
    shape = (batch, config.n_kv_heads, budget, config.head_dim)
    ring = (batch, recent_queries, config.n_heads, config.head_dim)
    layers = tuple(
        LayerKV(
            k=empty(shape, dtype, kv),
            v=empty(shape, dtype, kv),
            queries=jnp.zeros(ring, dtype) if recent_queries else None,
        )
        for _ in range(config.n_layers)
    )
    heads = (config.n_layers, config.n_kv_heads) if per_head else (1, 1)
    return KVCache(
        layers=layers,
        positions=jnp.full((batch, *heads, budget), -1, jnp.int32),
        length=jnp.zeros((batch,), jnp.int32),
    )
