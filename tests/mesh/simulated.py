"""Runs an engine on one device and on meshes of simulated CPU devices, and says where they differ.

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

from jkv.distributed.choose_mesh import settle_mesh
from jkv.distributed.weights import weight_shardings
from jkv.engine.engine import Engine
from jkv.engine.events import Request
from jkv.engine.sampling import TopPTopK
from jkv.models import Decoder
from jkv.models.config import ModelConfig
from jkv.models.quantized import quantize_decoder
from jkv.policies import Retention, get_policy
from jkv.policies.untrained import bind_untrained
from tests.support.requests import complete, prompts

# More requests than rows: a row that ends is refilled while the others go on.
B, S = 8, 32
LENGTHS = (5, 29, 12, 20, 7, 31, 16, 3, 25, 10, 18)
LIMITS = (70, 60, 53, 75, 60, 64, 50, 80, 48, 66, 55)
LLAMA = ModelConfig("llama", 96, 40, 72, 2, 8, 2, 12, 1e4)
QWEN = ModelConfig("qwen2", 96, 40, 72, 2, 14, 2, 12, 1e4, qkv_bias=True)
# KV heads for a model axis of eight.
LLAMA_8 = ModelConfig("llama", 96, 48, 72, 2, 16, 8, 12, 1e4)
QWEN_8 = ModelConfig("qwen2", 96, 40, 72, 2, 24, 8, 12, 1e4, qkv_bias=True)
# name: model, policy, retain, granularity. retain 31 is one out, one in; -int8 are the weights, -kv is the buffer;
# -sampled are not greedy.
CASES = {
    "llama-dynts-sampled": (LLAMA_8, "dynts", 24, "shared"),
    "llama8-dynts": (LLAMA_8, "dynts", 24, "shared"),
    "llama8-rkv": (LLAMA_8, "rkv", 24, "shared"),
    "llama8-window": (LLAMA_8, "window", 24, "shared"),
    "qwen8-dynts": (QWEN_8, "dynts", 24, "shared"),
    "qwen8-rkv": (QWEN_8, "rkv", 24, "shared"),
    "qwen8-window": (QWEN_8, "window", 24, "shared"),
    "llama-window-int8": (LLAMA, "window", 24, "shared"),
    "llama-trimkv-head": (LLAMA, "trimkv", 31, "head"),
    "qwen-h2o-kv": (QWEN, "h2o", 24, "shared"),
    "qwen-dynts-head": (QWEN, "dynts", 26, "head"),
}


def model_of(config: ModelConfig) -> Decoder:
    """Random weights, all of which matter, and logits that are far from ties."""
    model = Decoder(config, rngs=nnx.Rngs(0))
    graph, weights = nnx.split(model)
    rng = np.random.default_rng(0)
    louder = lambda leaf: leaf + jnp.asarray(rng.normal(size=leaf.shape) * 0.2, leaf.dtype)
    return nnx.merge(graph, jax.tree.map(louder, weights))


def run(case: str, mesh_text: str | None) -> dict[str, Any]:
    """Tokens, kept positions and evictions of every request, on one device or on a mesh."""
    config, name, retain, granularity = CASES[case]
    model = model_of(config)
    if case.endswith("-int8"):
        quantize_decoder(model)
    mesh = settle_mesh(mesh_text, config, rows=B, slots=S, dtype="float32")
    if mesh is not None:
        graph, weights = nnx.split(model)
        model = nnx.merge(graph, jax.device_put(weights, weight_shardings(weights, mesh)))
    policy, parameters = bind_untrained(get_policy(name)(), config)
    engine = Engine(
        model, policy=policy, rule=Retention(S, retain, 4, 2, False, granularity), batch_size=B, eos_ids=(),
        steps_per_call=16, parameters=parameters, mesh=mesh, kv="int8" if case.endswith("-kv") else None,
        sampler=TopPTopK(0.8, 0.9) if case.endswith("-sampled") else None,
    )  # fmt: skip
    ids = prompts(*LENGTHS, vocabulary=96)
    todo = [Request(str(i), prompt, limit) for i, (prompt, limit) in enumerate(zip(ids, LIMITS, strict=True))]
    done, events = complete(engine, todo, trace=granularity == "head")
    assert set(engine.traces.values()) == {1}, engine.traces
    if mesh is not None:
        data, heads = mesh.shape["data"], mesh.shape["model"]
        buffer, *scale = jax.tree.leaves(engine.state.cache.layers[0].k)
        shard = (B // data, config.n_kv_heads // heads, S, config.head_dim)
        assert buffer.sharding.shard_shape(buffer.shape) == shard
        assert [x.sharding.shard_shape(x.shape) for x in scale] in ([], [(*shard[:2], 1, S)])
        table = jax.tree.leaves(model.embed.get_value())[0]
        assert table.addressable_shards[0].data.shape == (96 // heads, config.d_model)
    return {
        "tokens": {id: completion.token_ids for id, completion in done.items()},
        "kept": {id: completion.kept for id, completion in done.items()},
        "evictions": {id: completion.evictions for id, completion in done.items()},
        "events": {id: [(e.event, e.position, e.kept) for e in of_row] for id, of_row in events.items()},
    }


def main(cases: list[str], meshes: list[str]) -> None:
    """Print, as one JSON object, what each mesh gave otherwise than one device did, and how much was decoded."""
    report = {}
    for case in cases:
        alone = run(case, None)
        differ = {mesh: [key for key, value in run(case, mesh).items() if value != alone[key]] for mesh in meshes}
        report[case] = {
            "evictions": list(alone["evictions"].values()),
            "tokens": [len(row) for row in alone["tokens"].values()],
            "distinct": len({token for row in alone["tokens"].values() for token in row}),
            "differ": {mesh: keys for mesh, keys in differ.items() if keys},
        }
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1].split("+"), sys.argv[2:])
