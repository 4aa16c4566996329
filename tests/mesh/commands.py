"""The commands with ``--mesh``, on eight simulated devices: what they leave, and what they leave without it.

Run as ``python -m tests.mesh.commands decode|labels|train DIRECTORY`` with the number of devices in XLA_FLAGS.
"""

import json
import pathlib
import sys

import jax
import numpy as np

from converters.fill import leaves
from converters.hf import write_hf
from jkv import decode, sweep, train_predictor
from jkv.demo import tokenizer
from jkv.distributed.mesh import make_mesh
from jkv.distributed.weights import place_weights
from jkv.load import load
from jkv.predictor_training.labels import Labeller
from jkv.predictor_training.traces import Trace
from tests.mesh.simulated import LLAMA_8, model_of
from tests.support.requests import prompts


def model_in(directory: pathlib.Path) -> pathlib.Path:
    """A random model of 8 KV heads with the demo's tokenizer."""
    write_hf(model_of(LLAMA_8), directory / "model")
    tokenizer.save(directory / "model", 512)
    return directory / "model"


def samples(out: pathlib.Path) -> dict[str, tuple]:
    """What must not depend on the mesh."""
    rows = map(json.loads, out.read_text("utf-8").splitlines())
    return {row["id"]: (row["token_ids"], row["evictions"], row["peak_slots"]) for row in rows}


def decode_and_sweep(directory: pathlib.Path) -> None:
    """One device, two meshes, and a run that changes its mesh half-way."""
    model = model_in(directory)
    ids = prompts(5, 29, 12, 20, 7, 31, 16, 3, 25, 10, vocabulary=86)
    rows = [{"id": f"p{i}", "prompt_ids": prompt, "answer": "7"} for i, prompt in enumerate(ids)]
    task = directory / "task.jsonl"
    task.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    common = ["--model", model, "--task", task, "--policy", "rkv", "--budget", 32, "--retain", 24, "--window", 4,
              "--max-new-tokens", 40, "--batch-size", 8, "--temperature", 0, "--quiet"]  # fmt: skip
    meshes = {"alone": None, "auto": "auto", "2x4": "data=2,model=4"}
    found, words = {}, {}
    for name, mesh in meshes.items():
        out = directory / name
        more = [] if mesh is None else ["--mesh", mesh]
        decode.main([str(x) for x in (*common, *more, "--out", out)])
        found[name] = samples(out / "samples.jsonl")
        words[name] = json.loads((out / "summary.json").read_text())["mesh"]
    assert len(found["alone"]) == 10
    assert sum(evictions for _, evictions, _ in found["alone"].values()) > 20
    assert found["auto"] == found["2x4"] == found["alone"]
    assert words == {"alone": None, "auto": "data=8,model=1", "2x4": "data=2,model=4"}

    torn = (directory / "2x4" / "samples.jsonl").read_text().splitlines(keepends=True)
    (directory / "2x4" / "samples.jsonl").write_text("".join(torn[:4]))
    decode.main([str(x) for x in (*common, "--mesh", "data=4,model=2", "--out", directory / "2x4")])
    assert samples(directory / "2x4" / "samples.jsonl") == found["alone"]

    crossed = ["--models", model, "--tasks", task, "--policies", "window", "rkv", "--budgets", 32, "--window", 4,
               "--max-new-tokens", 24, "--batch-size", 8, "--temperature", 0, "--quiet"]  # fmt: skip
    for name, more in (("s1", []), ("s8", ["--mesh", "data=2,model=4"])):
        sweep.main([str(x) for x in (*crossed, *more, "--out", directory / name)])
    runs = sorted(path.relative_to(directory / "s1") for path in (directory / "s1").glob("runs/**/samples.jsonl"))
    assert len(runs) == 3
    for run in runs:
        assert samples(directory / "s1" / run) == samples(directory / "s8" / run), run


def labels(directory: pathlib.Path) -> None:
    """Labels and hidden states on a mesh are those of a device, however long the traces are."""
    model = model_in(directory)
    spans = ((7, 45), (2, 20), (11, 42))
    traces = [
        Trace(f"t{i}", 0, tokens, start + 1, start, end)
        for i, (tokens, (start, end)) in enumerate(zip(prompts(60, 37, 50, vocabulary=96), spans, strict=True))
    ]
    plain = Labeller(load(model, "float32").model, horizon=9, layer=1)
    assert plain.at_once == 8
    expected = [plain([trace])[0] for trace in traces]
    for data, heads in ((1, 8), (2, 4)):
        mesh = make_mesh(jax.devices(), {"data": data, "model": heads})
        spread = load(model, "float32", place_weights(mesh)).model
        assert leaves(spread)["embed"].addressable_shards[0].data.shape == (96 // heads, 48)
        labeller = Labeller(spread, horizon=9, layer=1, mesh=mesh)
        assert labeller.at_once == data
        for start in range(0, len(traces), data):
            group = traces[start : start + data]
            for got, wanted in zip(labeller(group), expected[start : start + data], strict=True):
                for name in ("answer", "future", "hidden"):
                    np.testing.assert_allclose(getattr(got, name), getattr(wanted, name), atol=2e-5, rtol=0)
                assert wanted.answer.max() > 1e-2


def train(directory: pathlib.Path) -> None:
    """Traces and labels of a predictor by rows on four devices."""
    words = ["--limit", 24, "--epochs", 1, "--batch", 8, "--micro-batch", 4, "--held-out", 0.25, "--horizon", 16,
             "--temperature", 0, "--quiet"]  # fmt: skip
    for name, more in (("one", []), ("four", ["--mesh", "data=4"])):
        train_predictor.main([str(x) for x in (*words, *more, "--out", directory / name)])
    one, four = (samples(directory / name / "traces" / "samples.jsonl") for name in ("one", "four"))
    assert one == four
    losses = [
        json.loads((directory / x / "summary.json").read_text())["held_out"]["predictor"] for x in ("one", "four")
    ]
    for name, value in losses[0].items():
        assert abs(value - losses[1][name]) < 1e-3, name


if __name__ == "__main__":
    {"decode": decode_and_sweep, "labels": labels, "train": train}[sys.argv[1]](pathlib.Path(sys.argv[2]))
