"""prefill_attention in float32, one query at a time. For tests; it shares no code with the others."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def prefill_attention(
    q: Float[Array, "B T N H"], k: Float[Array, "B T K H"], v: Float[Array, "B T K H"]
) -> Float[Array, "B T N H"]:
    """See `jkv.ops.prefill_attention.api`."""
    rows, tokens, heads, dim = q.shape
    group = heads // k.shape[2]

    def one_head(queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
        """What the queries of one query head get from its KV head; arguments and result are [T, H]."""
        keys, values = keys.astype(jnp.float32), values.astype(jnp.float32)

        def one_query(t: jax.Array) -> jax.Array:
            """What the query of token t gets, [H]."""
            score = jnp.sum(keys * queries[t].astype(jnp.float32)[None, :], axis=1) / jnp.sqrt(jnp.float32(dim))
            weight = jnp.where(jnp.arange(tokens) <= t, jnp.exp(score - jnp.max(score)), 0.0)
            return jnp.sum(weight[:, None] * values, axis=0) / jnp.sum(weight)

        return jax.lax.map(one_query, jnp.arange(tokens))

    out = [
        jnp.stack([one_head(q[b, :, n], k[b, :, n // group], v[b, :, n // group]) for n in range(heads)], axis=1)
        for b in range(rows)
    ]
    return jnp.stack(out).astype(q.dtype)
