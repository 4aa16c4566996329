"""Tokens/s of the engine's own decode program with random weights, in the steady state of a budget.

A policy's rows grow from ``retain`` to ``budget`` occupied slots, over and over. Here they begin spread evenly over
this cycle, so that a timed call has as many evictions as a long run has on average. How many those are, and how many
slots every row has afterwards, is counted on the host beforehand, and the device's numbers must be the same.
"""

import dataclasses
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jkv.engine.engine import Engine
from jkv.engine.state import DecodeState
from jkv.models import Decoder
from jkv.models.config import ModelConfig
from jkv.policies import Full, Retention, get_policy
from jkv.policies.untrained import bind_untrained

SLACK = 2 << 30  # bytes left for temporaries and the allocator, beside what is predicted


@dataclasses.dataclass(frozen=True)
class Load:
    """What one measurement decodes with.

    Attributes:
        model: its name in the plan.
        policy: its name, 'full' for the full cache.
        budget: slots a row.
        batch: rows.
        kernels: whether Pallas kernels are used where there are some, as users get it; else XLA's ops only.
    """

    model: str
    policy: str
    budget: int
    batch: int
    kernels: bool = True

    @property
    def name(self) -> str:
        """The name of its cell in the record."""
        return f"{self.model} {self.policy} S{self.budget} B{self.batch} {'auto' if self.kernels else 'xla'}"

    @property
    def rule(self) -> Retention:
        """What an eviction keeps: an eighth of the budget is evicted at a time, and as much is the window."""
        eighth = max(2, self.budget // 8)
        return Retention(self.budget, self.budget if self.policy == "full" else self.budget - eighth, eighth)


def random_model(config: ModelConfig) -> Decoder:
    """A model with random bfloat16 weights, made on the device."""
    return Decoder(config, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)


def weight_bytes(config: ModelConfig) -> tuple[int, int]:
    """Bytes of all bfloat16 weights, and of those that a step reads (without the embedding table)."""
    c = config
    d, heads, kv = c.d_model, c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    bias = c.qkv_bias * (heads + 2 * kv) + c.o_bias * d + c.mlp_bias * (2 * c.d_ff + d) + c.qk_norm * 2 * c.head_dim
    layers = c.n_layers * (2 * d * (heads + kv) + 3 * d * c.d_ff + 2 * d + bias)
    table = c.vocab_size * d
    read = layers + d + table
    return 2 * (read + (0 if c.tied_head else table)), 2 * read


def predicted_bytes(config: ModelConfig, batch: int, budget: int) -> int:
    """Bytes of the weights, the KV buffer and two float32 arrays of logits. `SLACK` has to fit beside them."""
    return weight_bytes(config)[0] + config.kv_bytes(batch, budget, 2) + 8 * batch * config.vocab_size


def largest_batch(config: ModelConfig, budget: int, limit: int | None) -> int:
    """How many rows fit.

    Args:
        config: the model's, in bfloat16.
        budget: slots a row.
        limit: bytes of device memory, None where JAX doesn't know.

    Returns:
        Rows, 0 to 256; 4 if the limit isn't known.
    """
    if limit is None:
        return 4
    fixed = predicted_bytes(config, 0, budget)
    return max(0, min(256, (limit - SLACK - fixed) // (predicted_bytes(config, 1, budget) - fixed)))


def measure(load: Load, model: Decoder, *, steps: int, calls: int, gb_s: float) -> dict[str, Any]:
    """Measure one load.

    Args:
        load: what to decode with.
        model: its model, with random weights.
        steps: decode steps a device call.
        calls: device calls that are timed, after one to warm up.
        gb_s: the bandwidth of device memory in GB/s (10**9 bytes), for the roofline.

    Returns:
        The cell: the median over calls of the time of a step, and what belongs to it.

    Raises:
        AssertionError: the device's evictions or lengths are not those that were counted.
    """
    config, rule = model.config, load.rule
    policy, parameters = (Full(), ()) if load.policy == "full" else bind_untrained(
        get_policy(load.policy)(), config
    )  # fmt: skip
    engine = Engine(
        model, policy=policy, rule=rule, batch_size=load.batch, eos_ids=(), parameters=parameters,
        steps_per_call=steps, implementation="auto" if load.kernels else "xla",
    )  # fmt: skip
    engine.compile()
    kernel = "mosaic_gpu" in (engine.compiled_decode.as_text() or "")
    length = _start_lengths(rule, load.batch, policy.evicts, steps * (calls + 1))
    engine.state = _filled(engine.state, length)
    stop = np.bool_(False)
    seconds, occupied, counted = [], [], np.zeros_like(length)
    for call in range(calls + 1):
        seen, counted = _count(length, counted, steps, rule, policy.evicts)
        started = time.perf_counter()
        engine.state, out = engine.compiled_decode(engine.weights, engine.state, engine.parameters, stop, stop)
        tokens = np.asarray(out)
        if call:
            seconds.append(time.perf_counter() - started)
            occupied.append(seen)
        assert (tokens >= 0).all()
        np.testing.assert_array_equal(np.asarray(engine.state.cache.length), length)
        np.testing.assert_array_equal(np.asarray(engine.state.evictions), counted)
    evictions = int(counted.sum())
    assert bool(evictions) == policy.evicts, "a timed run must evict"
    step = statistics.median(seconds) / steps
    read = weight_bytes(config)[1] + config.kv_bytes(1, 1, 2) * statistics.mean(occupied)
    floor = read / (gb_s * 1e9)
    return {
        **dataclasses.asdict(load),
        "retain": rule.retain,
        "tokens_s": load.batch / step,
        "ms_per_step": 1e3 * step,
        "roofline_tokens_s": load.batch / floor,
        "share_of_roofline": floor / step,
        "bytes_per_step": int(read),
        "mean_slots": statistics.mean(occupied) / load.batch,
        "kv_bytes": engine.kv_bytes,
        "evictions": evictions,
        "steps": steps * (calls + 1),
        "compile_s": engine.timings.compile,
        "temp_bytes": getattr(engine.compiled_decode.memory_analysis(), "temp_size_in_bytes", None),
        "kernel": "pallas" if kernel else "xla",
        "seconds": seconds,
    }


def _start_lengths(rule: Retention, batch: int, evicts: bool, steps: int) -> np.ndarray:
    """Occupied slots of each row at the start, int32 [B].

    They are spread evenly over the cycle, with one row about to evict; without eviction over the buffer less ``steps``
    slots, so that no row outgrows it.
    """
    low, high = (rule.retain, rule.budget - 1) if evicts else (1, rule.budget - 1 - steps)
    return np.linspace(high, low, batch, endpoint=False).round().astype(np.int32)


def _count(
    length: np.ndarray, evictions: np.ndarray, steps: int, rule: Retention, evicts: bool
) -> tuple[float, np.ndarray]:
    """Follow all rows through ``steps`` decode steps.

    Args:
        length: occupied slots of each row, [B]; advanced in place.
        evictions: of each row so far, [B].
        steps: decode steps.
        rule: the budget, and what an eviction keeps.
        evicts: whether the policy evicts.

    Returns:
        Slots that a step reads on average, over all rows together; and the evictions of each row afterwards.
    """
    seen, evictions = 0, evictions.copy()
    for _ in range(steps):
        length += 1
        seen += int(length.sum())
        full = (length == rule.budget) & evicts
        evictions += full
        length[full] = rule.retain
    return seen / steps, evictions


def _filled(state: DecodeState, length: np.ndarray) -> DecodeState:
    """The state of rows that have been decoding for a while.

    Keys, values and the policy's scores are random, positions ascend from 0, and ``length`` slots of each row, [B], are
    occupied.
    """
    batch, cache = len(length), state.cache
    # The buffer may take nearly all of the memory, so random numbers are drawn for one row and copied to the others.
    alike = lambda x, key: x.at[:].set(jax.random.normal(key, x.shape[1:], x.dtype)[None])
    draw = jax.jit(alike, donate_argnums=0)
    keys = iter(jax.random.split(jax.random.key(1), 2 * len(cache.layers) + 1))
    layers = tuple(
        dataclasses.replace(layer, k=draw(layer.k, next(keys)), v=draw(layer.v, next(keys))) for layer in cache.layers
    )
    slot = jnp.arange(cache.budget, dtype=jnp.int32)
    occupied = jnp.asarray(length)
    positions = jnp.where(slot[None, :] < occupied[:, None], slot[None, :], -1)[:, None, None, :]
    shape, last = cache.positions.shape, next(keys)
    score = lambda leaf: jax.random.uniform(last, shape, leaf.dtype) if leaf.shape == shape else leaf
    return dataclasses.replace(
        state,
        cache=dataclasses.replace(
            cache, layers=layers, positions=jnp.broadcast_to(positions, shape) + 0, length=occupied
        ),
        policy=jax.tree.map(score, state.policy),
        position=occupied + 0,
        prompt_length=jnp.ones((batch,), jnp.int32),
        generated=occupied + 0,
        limit=jnp.full((batch,), 1 << 30, jnp.int32),
        active=jnp.ones((batch,), jnp.bool_),
        key=jax.random.bits(last, (batch, 2), jnp.uint32),
        peak=occupied + 0,
    )
