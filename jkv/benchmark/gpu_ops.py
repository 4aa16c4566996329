"""Each op against its reference, the bandwidth of a copy, and the time of decode attention alone, on this device."""

import collections
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jkv.ops import dispatch
from jkv.ops.decode_attention import pallas_gpu, reference, xla
from jkv.ops.evict import compact
from jkv.ops.insert import insert
from jkv.ops.insert import reference as insert_reference

Shape = tuple[int, int, int, int, int]  # B, K, G, S, H
TOLERANCE = 1e-2  # error allowed in bfloat16, relative to the largest number of the result


def _by_xla(q, k_new, v_new, k, v, slot, length, *, scale):
    """Insert, then attention and its weights, by XLA's ops."""
    k, v = insert(k, v, k_new, v_new, slot, implementation="xla")
    return xla.decode_attention(q, k, v, length, scale=scale), k, v, xla.attention_weights(q, k, length, scale=scale)


def _by_pallas(*arrays, scale):
    """The same by the kernel, which does all of it at once."""
    return dispatch.pallas(gpu=pallas_gpu.decode_attention)(*arrays, scale=scale, weights=True)


ATTENTION: dict[str, Callable[..., Any]] = {"xla": _by_xla, "pallas": _by_pallas}


def checks(name: str, shape: Shape) -> dict[str, Callable[[], dict[str, Any]]]:
    """Comparisons of each op with its reference in plain float32.

    Args:
        name: the implementation to compare, xla or pallas.
        shape: of the buffer and the queries.

    Returns:
        A function for each op, by the name of its cell in the record. Each returns the cell: the largest error divided
        by the largest number, and whether that is within `TOLERANCE`; or why the implementation can't run here.
    """
    label = "{}, B{} K{} G{} S{} H{}".format(name, *shape)
    case = functools.cache(functools.partial(_case, *shape))
    return {
        f"decode_attention {label}": lambda: _cell(lambda: _attention_error(ATTENTION[name], case())),
        f"insert {label}": lambda: _cell(lambda: _insert_error(name, case())),
        f"compact {label}": lambda: _cell(lambda: _compact_error(name, case())),
    }


def _case(batch: int, kv_heads: int, group: int, slots: int, dim: int) -> tuple[jax.Array, ...]:
    """q, k_new, v_new, k, v, slot, length.

    Rows of all lengths, S and (where there are several rows) 0 among them. Slots behind a row's length hold NaN, which
    shows in the result if they are read.
    """
    keys = jax.random.split(jax.random.key(slots + group), 5)
    shapes = [(batch, kv_heads * group, dim), *[(batch, kv_heads, dim)] * 2, *[(batch, kv_heads, slots, dim)] * 2]
    q, k_new, v_new, k, v = (jax.random.normal(*pair, jnp.bfloat16) for pair in zip(keys, shapes, strict=True))
    length = np.random.default_rng(slots).integers(1, slots + 1, batch)
    length[: min(batch, 2)] = (slots, 0)[:batch]
    dead = (jnp.arange(slots)[None, :] >= jnp.asarray(length)[:, None])[:, None, :, None]
    nan = jnp.asarray(jnp.nan, jnp.bfloat16)
    slot = np.where(length > 0, length - 1, slots)
    lists = (jnp.asarray(x, jnp.int32) for x in (slot, length))
    return q, k_new, v_new, jnp.where(dead, nan, k), jnp.where(dead, nan, v), *lists


def _cell(error: Callable[[], float]) -> dict[str, Any]:
    """The cell of one comparison."""
    try:
        found = error()
    except NotImplementedError as reason:
        return {"skipped": str(reason)}
    return {"error": found, "right": bool(found <= TOLERANCE)}


def _attention_error(function: Callable[..., Any], case: tuple[jax.Array, ...]) -> float:
    """The largest error of attention's output and weights, and of the buffers after the insert."""
    q, k_new, v_new, k, v, slot, length = case
    scale = q.shape[2] ** -0.5
    out, k_found, v_found, weights = jax.jit(lambda *arrays: function(*arrays, scale=scale))(*case)
    k, v = insert_reference.insert(k, v, k_new, v_new, slot)
    errors = [
        _error(out, reference.decode_attention(q, k, v, length, scale=scale)),
        _error(weights, reference.attention_weights(q, k, length, scale=scale)),
        _error(k_found, k),
        _error(v_found, v),
    ]
    return max(errors)


def _insert_error(name: str, case: tuple[jax.Array, ...]) -> float:
    """The error of both buffers after an insert."""
    _, k_new, v_new, k, v, slot, _ = case
    found = jax.jit(lambda *arrays: insert(*arrays, implementation=name))(k, v, k_new, v_new, slot)
    return max(map(_error, found, insert_reference.insert(k, v, k_new, v_new, slot)))


def _compact_error(name: str, case: tuple[jax.Array, ...]) -> float:
    """The error of both buffers after a compaction that keeps seven eighths of the slots, in every other row."""
    *_, k, v, _, _ = case
    batch, slots = k.shape[0], k.shape[2]
    rng = np.random.default_rng(0)
    source = np.stack([np.sort(rng.permutation(slots)[: -(-7 * slots // 8)]) for _ in range(batch)]).astype(np.int32)
    rows = np.arange(batch) % 2 == 0
    found = jax.jit(lambda *arrays: compact(*arrays, implementation=name))(k, v, jnp.asarray(source), jnp.asarray(rows))
    errors = []
    for after, before in zip(found, (k, v), strict=True):
        got, expected = np.array(after), np.array(before)
        for b in np.flatnonzero(rows):
            expected[b, :, : source.shape[1]] = expected[b][:, source[b]]
            got[b, :, source.shape[1] :] = expected[b, :, source.shape[1] :]  # free slots may hold anything
        errors.append(_error(got, expected))
    return max(errors)


def _error(got: Any, expected: Any) -> float:
    """The largest difference divided by the largest expected number; infinity if NaN stands in different places."""
    got, expected = (np.asarray(x, np.float32) for x in (got, expected))
    if not np.array_equal(np.isnan(got), np.isnan(expected)):
        return float("inf")
    largest = np.nanmax(np.abs(expected), initial=0.0)
    return float(np.nanmax(np.abs(got - expected), initial=0.0) / (largest or 1.0))


def copy_bandwidth(size: int, calls: int = 20) -> dict[str, Any]:
    """The bandwidth of a copy on the device.

    Args:
        size: bytes that are copied.
        calls: copies that are timed together.

    Returns:
        The cell: 'gb_s', the median of bytes read and written in 10**9 bytes a second, and what it comes from.
    """
    data = jax.random.normal(jax.random.key(0), (size // 4,))
    copy = jax.jit(lambda x: x + 1)
    seconds = _seconds_each(lambda: copy(data), calls)
    return {"gb_s": 2 * data.nbytes / statistics.median(seconds) / 1e9, "bytes": data.nbytes, "seconds": seconds}


def attention_time(name: str, shape: Shape, calls: int = 20) -> dict[str, Any]:
    """The time of decode attention with its insert, in rows of which the insert fills the last slot.

    Args:
        name: the implementation, xla or pallas.
        shape: of the buffer and the queries.
        calls: calls that are timed together.

    Returns:
        The cell: 'ms', the median of a call; 'gb_s', the bandwidth at which the buffer is then read, in 10**9 bytes a
        second. Or why the implementation can't run here.
    """
    batch, kv_heads, group, slots, dim = shape
    keys = jax.random.split(jax.random.key(0), 5)
    q = jax.random.normal(keys[0], (batch, kv_heads * group, dim), jnp.bfloat16)
    new = [jax.random.normal(key, (batch, kv_heads, dim), jnp.bfloat16) for key in keys[1:3]]
    k, v = (jax.random.normal(key, (batch, kv_heads, slots, dim), jnp.bfloat16) for key in keys[3:])
    slot, length = jnp.full((batch,), slots - 1, jnp.int32), jnp.full((batch,), slots, jnp.int32)

    def attend(
        q: jax.Array, k_new: jax.Array, v_new: jax.Array, k: jax.Array, v: jax.Array, slot: jax.Array, length: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Output, and both buffers, which are donated."""
        return ATTENTION_ALONE[name](q, k_new, v_new, k, v, slot, length, scale=dim**-0.5)[:3]

    try:
        step = jax.jit(attend, donate_argnums=(3, 4)).lower(q, *new, k, v, slot, length).compile()
    except NotImplementedError as reason:
        return {"skipped": str(reason)}
    buffers = [k, v]

    def once() -> list[jax.Array]:
        """One call, on the buffers that the last one returned."""
        _, *buffers[:] = step(q, *new, *buffers, slot, length)
        return buffers

    seconds = _seconds_each(once, calls)
    typical = statistics.median(seconds)
    return {"ms": 1e3 * typical, "gb_s": (k.nbytes + v.nbytes) / typical / 1e9, "seconds": seconds}


def _xla_alone(q, k_new, v_new, k, v, slot, length, *, scale):
    """Insert and attention by XLA's ops, without attention weights."""
    k, v = insert(k, v, k_new, v_new, slot, implementation="xla")
    return xla.decode_attention(q, k, v, length, scale=scale), k, v


ATTENTION_ALONE: dict[str, Callable[..., Any]] = {
    "xla": _xla_alone,
    "pallas": dispatch.pallas(gpu=pallas_gpu.decode_attention),
}


def _seconds_each(function: Callable[[], Any], calls: int) -> list[float]:
    """Seconds a call, measured five times. ``calls`` are queued at once, so that the device is never idle."""
    jax.block_until_ready(function())
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        jax.block_until_ready(collections.deque((function() for _ in range(calls)), maxlen=1).pop())
        seconds.append((time.perf_counter() - started) / calls)
    return seconds
