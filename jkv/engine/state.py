"""What the decode loop carries: the KV buffer, the policy's state, and each row's metadata. All are arrays of fixed
shapes, so one compiled program serves a run of any length.
"""

import dataclasses
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Key

from jkv.axes import Array, Bool, Float, Int, UInt32
from jkv.engine.cache import KVCache, empty_cache
from jkv.engine.sampling import Sampler
from jkv.models.config import ModelConfig
from jkv.policies.base import Policy, Shape
from jkv.policies.retention import Retention
from jkv.pytree import pytree


@dataclasses.dataclass(frozen=True)
class DecodeSetup:
    """Everything besides array shapes that a compiled program depends on. Hashable; it contains no arrays.

    Attributes:
        graph: the model's structure; its weights are arguments of the programs.
        config: the model's sizes.
        policy: what scores tokens, bound to the model (``Policy.bind``).
        rule: the budget, how many slots stay after an eviction, and what is never evicted.
        sampler: draws the next token.
        eos_ids: tokens that end a sequence; none: every request runs to its ``max_new_tokens``.
        implementation: which implementation of the array operations runs: 'auto', 'xla', 'pallas' or
            'reference' (`jkv.ops.dispatch`).
        record_scores: whether the state keeps what each row's last eviction was decided by (`Scored`).
    """

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
        """Whether a full row evicts many tokens at once, which moves slots. Otherwise a new token overwrites the slot
        of the one that is evicted for it, or nothing is ever evicted."""
        return self.policy.evicts and not self.rule.one_out

    def shape(self, rows: int) -> Shape:
        """Sizes from which the policy makes its state for a batch of ``rows``."""
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
    """What each row's last eviction was decided by. Slots are numbered as they were before that eviction.

    Attributes:
        scores: every slot's priority (`jkv.engine.priority.priority`); +inf for protected tokens. Zeros before a row's
            first eviction.
        positions: of the token that the slot held then.
    """

    scores: Float[Array, "B l k S"]
    positions: Int[Array, "B l k S"]


@pytree
class DecodeState:
    """One batch in flight: buffer and metadata of every row.

    What belongs to a row beside its layers' buffers is its *metadata*: a DecodeState with B = 1 and ``cache.layers``
    empty. A row that is not active keeps its metadata, keys and values as they were when its request ended, until it
    is refilled. (In a ring of queries one place is overwritten; nothing reads it.)

    Attributes:
        cache: keys, values and positions of the tokens in the buffer.
        policy: the policy's state (``Policy.init``): a pytree with leading axis B on every leaf.
        slot_tokens: token ids of the slots, if the policy asks for them (``Needs.tokens``).
        token: the row's newest token. It is drawn, but not yet in the buffer.
        position: the place of ``token`` in its sequence, prompt included, from 0.
        prompt_length: tokens of the prompt.
        generated: new tokens drawn so far.
        limit: new tokens at most (``Request.max_new_tokens``).
        active: whether decode steps go on for the row: its request's prompt has been read, and it is not finished.
        key: raw random key of the request (`request_key`).
        evictions: evictions of this request so far.
        peak: the most slots occupied at once by this request.
        slot_steps: occupied slots, summed over this request's decode steps.
        scored: what the last evictions were decided by; None unless the setup records scores.
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


def empty_state(setup: DecodeSetup, batch: int, dtype: DTypeLike, kv: str | None = None) -> DecodeState:
    """A batch of ``batch`` idle rows. dtype, kv: of the buffer, as for `jkv.engine.cache.empty_cache`."""
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
    zeros = lambda: jnp.zeros((batch,), jnp.int32)  # a new array each time: an array must not be donated twice
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
    """``Scored`` of rows that have not evicted yet."""
    return Scored(scores=shape.per_slot(), positions=shape.per_slot(jnp.int32))


def request_key(seed: int, problem_id: str, sample: int) -> UInt32[np.ndarray, " 2"]:
    """Raw random key of one request. It depends on nothing else, so a request's draws don't depend on its batch, its
    row or its turn."""
    digest = hashlib.blake2b(f"{seed}\0{problem_id}\0{sample}".encode(), digest_size=8).digest()
    return np.frombuffer(digest, "<u4").astype(np.uint32)


SAMPLING, EVICTION = 0, 1  # streams of random numbers: what is drawn for one doesn't change the other


def row_keys(key: UInt32[Array, "B 2"], stream: int, position: Int[Array, " B"]) -> Key[Array, " B"]:
    """Each row's random key for one event.

    Args:
        key: raw keys of the requests.
        stream: ``SAMPLING`` or ``EVICTION``.
        position: of the token that is drawn, or of the newest token when a row evicts.
    """

    def derive(raw: UInt32[Array, " 2"], at: Int[Array, ""]) -> Key[Array, ""]:
        """The key of one row."""
        return jax.random.fold_in(jax.random.fold_in(jax.random.wrap_key_data(raw, impl="threefry2x32"), stream), at)

    return jax.vmap(derive)(key, position)
