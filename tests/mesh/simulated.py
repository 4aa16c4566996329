"""Decodes one batch on one device and on meshes of simulated CPU devices, and says where they differ.

Run as ``python -m tests.mesh.simulated CASE+CASE... MESH...`` with XLA_FLAGS=--xla_force_host_platform_device_count=8:
the number of devices can't be changed once jax is there.
"""

import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jkv.benchmark.policies import random_parameters
from jkv.chunked_prefill import chunked_prefill
from jkv.config import ModelConfig
from jkv.mesh import check_mesh, everywhere, lower_over_rows, make_mesh, parse_mesh, state_formats, weight_shardings
from jkv.models import Decoder
from jkv.policies import Retention, get_policy
from jkv.prefill import prefill
from jkv.sampling import Greedy
from jkv.state import DecodeState, Program, empty_state, request_key
from jkv.step import decode

B, S, STEPS, CALLS, BUCKET = 4, 32, 16, 5, 32
LENGTHS, LIMITS = (5, 29, 12, 20), (70, 60, 33, 75)
LLAMA = ModelConfig("llama", 96, 40, 72, 2, 8, 2, 12, 1e4)
QWEN = ModelConfig("qwen2", 96, 40, 72, 2, 14, 2, 12, 1e4, qkv_bias=True)
# name: model, policy, retain, granularity. retain 31 is one out, one in.
CASES = {
    "llama-window": (LLAMA, "window", 24, "shared"),
    "llama-dynts": (LLAMA, "dynts", 24, "shared"),
    "llama-h2o-head": (LLAMA, "h2o", 24, "head"),
    "llama-rkv": (LLAMA, "rkv", 24, "shared"),
    "llama-trimkv-head": (LLAMA, "trimkv", 31, "head"),
    "qwen-window-one-out": (QWEN, "window", 31, "shared"),
    "qwen-dynts-head": (QWEN, "dynts", 26, "head"),
    "qwen-h2o": (QWEN, "h2o", 24, "shared"),
    "qwen-rkv-head": (QWEN, "rkv", 24, "head"),
    "qwen-rkv-head-one-out": (QWEN, "rkv", 31, "head"),
}


def model_of(config: ModelConfig) -> Decoder:
    """Random weights, all of which matter, and logits that are far from ties."""
    model = Decoder(config, rngs=nnx.Rngs(0))
    graph, weights = nnx.split(model)
    rng = np.random.default_rng(0)
    louder = lambda leaf: leaf + jnp.asarray(rng.normal(size=leaf.shape) * 0.2, leaf.dtype)
    return nnx.merge(graph, jax.tree.map(louder, weights))


def run(case: str, mesh_words: str | None) -> dict[str, Any]:
    """Tokens, kept positions and evictions of every row, on one device or on a mesh."""
    config, name, retain, granularity = CASES[case]
    model = model_of(config)
    policy, parameters = random_parameters(get_policy(name)(), config)
    graph, weights = nnx.split(model)
    program = Program(graph, config, policy, Retention(S, retain, 4, 2, False, granularity), Greedy(), ())
    state = empty_state(program, B, jnp.float32)
    chunked = policy.needs.attention
    read = chunked_prefill if chunked else prefill

    def fill(weights, state, parameters, *arguments):
        return read(program, weights, state, parameters, *arguments)

    def draw(weights, state, parameters, *flags):
        return decode(program, weights, state, parameters, *flags, steps=STEPS)

    if mesh_words is None:
        fill, draw = (jax.jit(f, donate_argnums=1) for f in (fill, draw))
        return _decode(fill, draw, weights, state, parameters, chunked)
    sizes = parse_mesh(mesh_words)
    mesh = make_mesh(jax.devices()[: sizes["data"] * sizes["model"]], sizes)
    check_mesh(config, B, mesh)
    weights = jax.device_put(weights, weight_shardings(weights, mesh))
    parameters = jax.device_put(parameters, everywhere(parameters, mesh))
    state = jax.device_put(state, state_formats(state, config, mesh))
    number, flag = np.int32(0), np.bool_(False)
    ids, key = np.zeros(BUCKET, np.int32), np.zeros(2, np.uint32)
    prompt = (number, ids, number, number, number, key, flag) if chunked else (number, ids, number, number, key)
    everything = (weights, state, parameters)
    fill = lower_over_rows(fill, mesh, config, (*everything, *prompt), "--" if chunked else "-").compile()
    draw = lower_over_rows(draw, mesh, config, (*everything, flag, flag), "B").compile()
    return _decode(fill, draw, weights, state, parameters, chunked)


def _decode(fill, draw, weights, state: DecodeState, parameters, chunked: bool) -> dict[str, Any]:
    rng = np.random.default_rng(3)
    tokens: list[list[int]] = []
    for row, (length, limit) in enumerate(zip(LENGTHS, LIMITS, strict=True)):
        ids = np.zeros(BUCKET, np.int32)
        ids[:length] = rng.integers(3, 96, length)
        rest = (np.int32(length), np.int32(limit), request_key(0, str(row), 0))
        if chunked:
            rest = (np.int32(0), *rest, np.bool_(False))
        state, *_, first = fill(weights, state, parameters, np.int32(row), ids, *rest)
        tokens.append([int(first)])
    calls = 0
    while calls < CALLS * 4 and bool(np.asarray(state.active).any()):
        state, out = draw(weights, state, parameters, np.bool_(calls % 2), np.bool_(False))
        calls += 1
        for row, new in zip(tokens, np.asarray(out), strict=True):
            row += [int(token) for token in new if token >= 0]
    length = np.asarray(state.cache.length)
    positions = np.asarray(state.cache.positions)
    kept = [np.sort(positions[row, :, :, : length[row]], axis=-1).tolist() for row in range(B)]
    return {"tokens": tokens, "kept": kept, "evictions": np.asarray(state.evictions).tolist()}


def main(cases: list[str], meshes: list[str]) -> None:
    """Print, as one JSON object, what each mesh gave otherwise than one device did, and how much was decoded."""
    report = {}
    for case in cases:
        alone = run(case, None)
        differ = {mesh: [key for key, value in run(case, mesh).items() if value != alone[key]] for mesh in meshes}
        report[case] = {
            "evictions": alone["evictions"],
            "tokens": [len(row) for row in alone["tokens"]],
            "distinct": len({token for row in alone["tokens"] for token in row}),
            "differ": {mesh: keys for mesh, keys in differ.items() if keys},
        }
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1].split("+"), sys.argv[2:])
