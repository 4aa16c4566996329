"""What the decode loop carries: the buffer, the policy's state, and each row's books. All arrays, fixed shapes."""

import dataclasses
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jkv.axes import Array, Bool, Float, Int, UInt32
from jkv.engine.cache import KVCache, empty_cache
from jkv.engine.sampling import Sampler
from jkv.models.config import ModelConfig
from jkv.policies.base import Policy, Shape
from jkv.policies.retention import Retention
from jkv.pytree import pytree


@dataclasses.dataclass(frozen=True)
class DecodeSetup:
    """Everything that a compiled step depends on besides array shapes. Hashable."""

    graph: nnx.GraphDef
    config: ModelConfig
    policy: Policy
    rule: Retention
    sampler: Sampler
    eos_ids: tuple[int, ...]
    implementation: str = "auto"
    record_scores: bool = False

    @property
    def bulk(self) -> bool:
        """Whether a full row drops many slots at once (and its buffer is compacted)."""
        return self.policy.evicts and not self.rule.one_out

    def shape(self, rows: int) -> Shape:
        """Sizes for the policy's state."""
        c, per_head = self.config, self.rule.granularity == "head"
        return Shape(
            rows=rows,
            slots=self.rule.budget,
            keep_layers=c.n_layers if per_head else 1,
            keep_heads=c.n_kv_heads if per_head else 1,
            n_layers=c.n_layers,
            n_heads=c.n_heads,
            n_kv_heads=c.n_kv_heads,
            head_dim=c.head_dim,
            d_model=c.d_model,
        )


@pytree
class Scored:
    """What the last eviction of each row decided by: every slot's priority (+inf: protected), and the position that the
    slot held then. Slots are numbered as they were before that eviction."""

    scores: Float[Array, "B l k S"]
    positions: Int[Array, "B l k S"]


@pytree
class DecodeState:
    """One batch in flight. ``token`` is each row's newest token, not yet in the buffer; ``position`` is its place in
    the sequence. A row that is not active keeps everything as it was when it ended, until it is refilled.

    generated, limit: new tokens so far, and at most.  evictions, peak, slot_steps: evictions, most slots occupied, and
    occupied slots summed over decode steps.  key: raw random key of the request.  scored: only for a program that
    records scores.
    """

    cache: KVCache
    policy: Any
    slot_tokens: Int[Array, "B l k S"] | None
    token: Int[Array, " B"]
    position: Int[Array, " B"]
    prompt_length: Int[Array, " B"]
    generated: Int[Array, " B"]
    limit: Int[Array, " B"]
    active: Bool[Array, " B"]
    key: UInt32[Array, "B 2"]
    evictions: Int[Array, " B"]
    peak: Int[Array, " B"]
    slot_steps: Int[Array, " B"]
    scored: Scored | None = None

    @property
    def newest(self) -> Int[Array, " B"]:
        """Position of the newest token that is in the buffer."""
        return self.position - 1


def empty_state(setup: DecodeSetup, batch: int, dtype, kv: str | None = None) -> DecodeState:
    """A batch of idle rows. kv: 'int8' for a buffer of that."""
    shape, rule = setup.shape(batch), setup.rule
    cache = empty_cache(
        setup.config,
        batch,
        rule.budget,
        dtype=dtype,
        kv=kv,
        per_head=rule.granularity == "head",
        recent_queries=setup.policy.needs.queries,
    )
    zeros = lambda: jnp.zeros((batch,), jnp.int32)  # a fresh array each: donated arrays must not be aliased
    return DecodeState(
        cache=cache,
        policy=setup.policy.init(shape),
        slot_tokens=shape.per_slot(jnp.int32) if setup.policy.needs.tokens else None,
        token=zeros(),
        position=zeros(),
        prompt_length=zeros(),
        generated=zeros(),
        limit=zeros(),
        active=jnp.zeros((batch,), jnp.bool_),
        key=jnp.zeros((batch, 2), jnp.uint32),
        evictions=zeros(),
        peak=zeros(),
        slot_steps=zeros(),
        scored=empty_scores(shape) if setup.record_scores else None,
    )


def empty_scores(shape: Shape) -> Scored:
    """No eviction yet."""
    return Scored(scores=shape.per_slot(), positions=shape.per_slot(jnp.int32))


def request_key(seed: int, problem_id: str, sample: int) -> np.ndarray:
    """Raw random key, uint32[2], of one request: the same whatever batch, row or order it runs in."""
    digest = hashlib.blake2b(f"{seed}\0{problem_id}\0{sample}".encode(), digest_size=8).digest()
    return np.frombuffer(digest, "<u4").astype(np.uint32)


SAMPLING, EVICTION = 0, 1


def row_keys(key: UInt32[Array, "B 2"], stream: int, position: Int[Array, " B"]) -> jax.Array:
    """Random keys [B] for one event: the request's key, the stream (sampling or eviction), the token's position."""

    def derive(raw: jax.Array, at: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.wrap_key_data(raw, impl="threefry2x32"), stream), at)

    return jax.vmap(derive)(key, position)
