"""Compiles decode programs for TPUs that aren't here and says what they are like, one JSON object a line.

Run as ``python -m tests.tpu.programs LAYERS MODEL TOPOLOGY MESH POLICY BUDGET [MODEL ...]``: five words a program, or
``all``; LAYERS 0 is the model's own depth; POLICY+kv, POLICY+weights and POLICY+kv+weights make those int8. A process
of its own: libtpu reads its environment when it is loaded.
"""

import dataclasses
import json
import sys
from typing import Any

from jkv.planning.chips import prepare

BATCH = 32
MESHES = {
    ("v5e:2x4", "r1-llama-8b"): "data=1,model=8",
    ("v5e:2x4", "r1-qwen-7b"): "data=2,model=4",  # 4 KV heads
    ("v6e:2x2", "r1-llama-8b"): "data=1,model=4",
    ("v6e:2x2", "r1-qwen-7b"): "data=1,model=4",
    ("v5p:2x2x1", "r1-llama-8b"): "data=1,model=4",
    ("v5p:2x2x1", "r1-qwen-7b"): "data=1,model=4",
}
POLICIES = ("window", "dynts", "h2o", "rkv")
BUDGETS = ("2500", "5000")
CROSS_PRODUCT = [
    (model, topology, mesh, policy, budget)
    for (topology, model), mesh in MESHES.items()
    for policy in POLICIES
    for budget in BUDGETS
]


def describe(layers: int, model: str, topology: str, mesh: str, policy: str, budget: str) -> dict[str, Any]:
    """Compile one decode program; bytes are a chip's."""
    from jkv.config.plan import PlanConfig
    from jkv.planning import hlo
    from jkv.planning.compile import compile_decode
    from jkv.planning.report import target_of
    from jkv.planning.step_bytes import kv_bytes

    name, *int8 = policy.split("+")
    words = PlanConfig(
        model=model, topology=topology, mesh=mesh, policy=name, budget=int(budget), batch_size=BATCH, options=None,
        kv="int8" if "kv" in int8 else None, weights="int8" if "weights" in int8 else None,
    )  # fmt: skip
    _, target = target_of(words)
    if layers:
        target = dataclasses.replace(target, config=dataclasses.replace(target.config, n_layers=layers))
    c, sizes = target.config, target.mesh.shape
    compiled = compile_decode(target, BATCH)
    shape = (BATCH // sizes["data"], c.n_kv_heads // sizes["model"], int(budget), c.head_dim)
    return {
        "name": " ".join((model, topology, mesh, policy, budget)),
        "layers": c.n_layers,
        "seconds": round(compiled.seconds, 1),
        "arguments": compiled.arguments,
        "temporaries": compiled.temporaries,
        "kv": kv_bytes(target, BATCH),
        "layer_kv": kv_bytes(target, BATCH) // c.n_layers // 2,
        "copies": hlo.kv_copies(compiled.text, shape),
        "not_in_place": compiled.outputs - compiled.aliased,
        "alias_bytes": compiled.aliased,
        "aliased": hlo.aliased(compiled.text),
        "kernels": dict(hlo.kernels(compiled.text)),
        "collectives": hlo.collectives(compiled.text),
        "sums": hlo.collective_shapes(compiled.text),
        "d_model": c.d_model,
        "budget": int(budget),
        "rows": BATCH // sizes["data"],
    }


def main(layers: str, *words: str) -> None:
    """One line a program; 'all' is the cross product."""
    programs = CROSS_PRODUCT if words == ("all",) else [words[i : i + 5] for i in range(0, len(words), 5)]
    for program in programs:
        print(json.dumps(describe(int(layers), *program)), flush=True)


if __name__ == "__main__":
    prepare()
    main(*sys.argv[1:])
