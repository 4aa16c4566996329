"""The KV buffer: exactly ``budget`` slots per row, layer and KV head, and the books about what each slot holds.

Slots ``0 .. length-1`` of a row are occupied, the rest are dead and may hold anything. Keys are stored after RoPE, so
attention does not care about slot order. Every KV head of a row has the same number of occupied slots. Keys and values
are arrays of the model's dtype, or int8 with a scale (`jkv.ops.buffer`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jkv.axes import Array, Float, Int
from jkv.models.config import ModelConfig
from jkv.ops.buffer import Buffer, dense, empty
from jkv.pytree import pytree


@pytree
class LayerKV:
    """One layer's buffer. ``queries`` is a ring of the last n queries after RoPE, kept only for policies that ask for
    it; the query of position p is at p mod n."""

    k: Buffer
    v: Buffer
    queries: Float[Array, "B n N H"] | None = None


@pytree
class KVCache:
    """All layers' buffers, and per row which original position each slot holds.

    positions has one keep set per row (l = k = 1, granularity shared) or one per layer and KV head (l = L, k = K).
    Layers are separate arrays: one stacked array carried through a loop gets copied by XLA.
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
        """Bytes of all key and value buffers, scales included."""
        buffers = jax.tree.leaves([(layer.k, layer.v) for layer in self.layers])
        return sum(x.size * x.dtype.itemsize for x in buffers)

    def row(self, row: int) -> "RowView":
        """Copy one row's occupied slots to the host, in slot order (for tests and for showing a run)."""
        n = int(self.length[row])
        return RowView(
            positions=np.asarray(self.positions[row, :, :, :n]),
            k=np.stack([_dense_row(layer.k, row)[:, :n] for layer in self.layers]),
            v=np.stack([_dense_row(layer.v, row)[:, :n] for layer in self.layers]),
        )


def _dense_row(buffer: Buffer, row: int) -> np.ndarray:
    """[K, S, H]."""
    return np.asarray(dense(jax.tree.map(lambda x: x[row : row + 1], buffer))[0], np.float32)


class RowView(NamedTuple):
    """One row on the host: positions [l, k, n], k and v [L, K, n, H] in float32."""

    positions: np.ndarray
    k: np.ndarray
    v: np.ndarray


def empty_cache(
    config: ModelConfig,
    batch: int,
    budget: int,
    *,
    dtype,
    kv: str | None = None,
    per_head: bool = False,
    recent_queries: int = 0,
) -> KVCache:
    """A buffer with nothing in it: L*B*K*S*H*2*itemsize bytes of keys and values (and the query ring, if asked). kv:
    'int8' makes it L*B*K*S*(H+4)*2."""
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
