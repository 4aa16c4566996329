"""Tokens/s of the engine's own decode program with random weights, in the steady state of a budget.

Rows begin spread evenly over a policy's cycle (from ``retain`` to ``budget`` occupied slots), so that a timed call
holds as many evictions as a long run does on average. How many that are, and how long every row is afterwards, is
counted beforehand, and the device must agree.
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
from jkv.models import Decoder
from jkv.models.config import ModelConfig
from jkv.policies import Full, Retention, get_policy
from jkv.policies.untrained import random_parameters

SLACK = 2 << 30  # bytes left for temporaries and the allocator, beside what is predicted


@dataclasses.dataclass(frozen=True)
class Load:
    """One cell: a policy (or full) in ``budget`` slots, ``batch`` rows. kernels: Pallas' where there is one, as users
    get it; else XLA alone."""

    model: str
    policy: str
    budget: int
    batch: int
    kernels: bool = True

    @property
    def name(self) -> str:
        """As in the record."""
        return f"{self.model} {self.policy} S{self.budget} B{self.batch} {'auto' if self.kernels else 'xla'}"

    @property
    def rule(self) -> Retention:
        """An eighth of the budget goes at a time, and an eighth is the window."""
        eighth = max(2, self.budget // 8)
        return Retention(self.budget, self.budget if self.policy == "full" else self.budget - eighth, eighth)


def random_model(config: ModelConfig) -> Decoder:
    """Random bfloat16 weights, made on the device."""
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
    """Weights, the KV buffer, and two arrays of logits: what has to fit beside SLACK."""
    return weight_bytes(config)[0] + config.kv_bytes(batch, budget, 2) + 8 * batch * config.vocab_size


def largest_batch(config: ModelConfig, budget: int, limit: int | None) -> int:
    """Rows that fit ``limit`` bytes, at most 256; 4 where there is no limit to know."""
    if limit is None:
        return 4
    fixed = predicted_bytes(config, 0, budget)
    return max(0, min(256, (limit - SLACK - fixed) // (predicted_bytes(config, 1, budget) - fixed)))


def measure(load: Load, model: Decoder, *, steps: int, calls: int, gb_s: float) -> dict[str, Any]:
    """The cell's figures. steps: of a device call.  calls: timed ones, after one to warm up."""
    config, rule = model.config, load.rule
    policy, parameters = (Full(), ()) if load.policy == "full" else random_parameters(
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
    """Spread evenly over the cycle, one row about to evict; without eviction over the buffer less ``steps`` slots."""
    low, high = (rule.retain, rule.budget - 1) if evicts else (1, rule.budget - 1 - steps)
    return np.linspace(high, low, batch, endpoint=False).round().astype(np.int32)


def _count(length: np.ndarray, evictions: np.ndarray, steps: int, rule: Retention, evicts: bool):
    """Advances ``length`` in place by ``steps``; returns slots attended to in a step on average, and the evictions."""
    seen, evictions = 0, evictions.copy()
    for _ in range(steps):
        length += 1
        seen += int(length.sum())
        full = (length == rule.budget) & evicts
        evictions += full
        length[full] = rule.retain
    return seen / steps, evictions


def _filled(state: Any, length: np.ndarray) -> Any:
    """The state of rows in mid-thought: random keys and values, positions in order, random scores."""
    batch, cache = len(length), state.cache
    # Random numbers take memory beside the buffer, which may be nearly all there is: those of one row do for all.
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
