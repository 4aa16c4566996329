"""``python -m jkv.benchmark.gpu`` at tiny sizes on this machine: all of it runs, evicts as counted, and is written."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jkv.benchmark import gpu, gpu_decode, gpu_ops, gpu_rival
from jkv.benchmark.r1 import R1, TINY
from jkv.benchmark.record import Record
from jkv.errors import UserError
from jkv.policies import Retention
from jkv.terminal import command as cli


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    file = tmp_path_factory.mktemp("gpu") / "gpu.json"
    patch = pytest.MonkeyPatch()
    asked = []
    patch.setattr(gpu_rival, "ask", lambda config, **options: asked.append(options) or {"skipped": "not here"})
    gpu.main(["--smoke", "--out", str(file)])
    patch.undo()
    return file, asked


@pytest.mark.slow
def test_record(smoke):
    file, asked = smoke
    record = json.loads(file.read_text())
    assert record["head"]["smoke"] is True
    assert {"device", "jax", "commit", "date"} <= set(record["head"])
    cells = record["cells"]
    assert cells["copy"]["gb_s"] > 0
    assert cells["transformers tiny-qwen"] == {"skipped": "not here"}
    assert asked[0]["prompt"] == 32
    checked = {name: cell for name, cell in cells.items() if "right" in cell}
    assert len(checked) == 3  # decode_attention, insert and compact
    assert all(cell["right"] for cell in checked.values())
    assert "not for CPU" in cells["decode_attention pallas, B2 K2 G3 S40 H16"]["skipped"]
    for policy in ("window", "dynts"):
        cell = cells[f"tiny-qwen {policy} S32 B3 auto"]
        assert cell["evictions"] == 12  # rows begin at 31, 30 and 29 of 32 slots; four go at a time, in sixteen steps
        assert cell["kv_bytes"] == TINY["tiny-qwen"].kv_bytes(3, 32, 2)
        assert 28 < cell["mean_slots"] < 32
        assert cell["share_of_roofline"] == pytest.approx(cell["tokens_s"] / cell["roofline_tokens_s"])
    assert cells["tiny-qwen full S64 B4 auto"]["evictions"] == 0


@pytest.mark.slow
def test_a_finished_record_is_not_measured_again(smoke, capsys, monkeypatch):
    file, _ = smoke
    before = file.read_text()
    for module, name in ((gpu_decode, "measure"), (gpu_ops, "copy_bandwidth"), (gpu_ops, "_cell")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("measured again"))
    gpu.main(["--smoke", "--out", str(file)])
    assert file.read_text() == before
    shown = capsys.readouterr().out
    assert "tokens/s" in shown
    assert "tiny-qwen" in shown
    assert "wrong: none" in shown


def test_without_a_gpu_one_line(capfd, tmp_path):
    with pytest.raises(SystemExit) as leaving:
        cli.run(gpu.main, ["--out", str(tmp_path / "gpu.json")])
    assert leaving.value.code == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    assert "no GPU: JAX runs on cpu here" in error
    assert not list(tmp_path.iterdir())


def test_record_of_another_run_is_refused_and_skipped_cells_are_tried_again(tmp_path):
    file = tmp_path / "record.json"
    record = Record(file, {"device": "a", "date": "1"}, 60.0)
    record.put("cell", {"tokens_s": 1})
    record.put("late", {"skipped": "no time left", "again": True})
    record.put("large", {"skipped": "needs 99 GB"})
    assert set(Record(file, {"device": "a", "date": "2"}, 60.0).cells) == {"cell", "large"}
    with pytest.raises(UserError, match="device differ"):
        Record(file, {"device": "b", "date": "1"}, 60.0)
    file.write_text("[]")
    with pytest.raises(UserError, match="is not a record"):
        Record(file, {}, 60.0)


@pytest.mark.slow
def test_no_time_leaves_decode_to_another_call_and_a_failure_loses_nothing(tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("the kernel broke")

    monkeypatch.setattr(gpu_rival, "ask", lambda *_, **__: {"skipped": "not here"})
    monkeypatch.setattr(gpu_ops, "_cell", broken)
    monkeypatch.setattr(gpu_ops, "attention_time", lambda *_: {"skipped": "not here"})
    file = tmp_path / "gpu.json"
    with pytest.raises(UserError, match="failed: decode_attention xla"):
        gpu.main(["--smoke", "--seconds", "0", "--out", str(file)])
    cells = json.loads(file.read_text())["cells"]
    assert cells["compact xla, B2 K2 G3 S40 H16"] == {"failed": "RuntimeError: the kernel broke"}
    assert cells["tiny-qwen window S32 B3 auto"] == {"skipped": "no time left", "again": True}


def test_counting_ahead():
    length, none = np.array([7, 5], np.int32), np.zeros(2, np.int32)
    seen, evictions = gpu_decode._count(length, none, 4, Retention(8, 6, 2), True)
    assert list(length) == [7, 7]  # 8 -> 6, 7, 8 -> 6, 7 and 6, 7, 8 -> 6, 7
    assert list(evictions) == [2, 1]
    assert seen == (8 + 7 + 8 + 7 + 6 + 7 + 8 + 7) / 4


def test_bytes_of_the_models():
    # Parameters of the published checkpoints: 8,030,261,248 and 7,615,616,512.
    total, read = gpu_decode.weight_bytes(R1["r1-llama-8b"])
    assert total == 2 * 8_030_261_248
    assert total - read == 2 * 128256 * 4096
    assert gpu_decode.weight_bytes(R1["r1-qwen-7b"])[0] == 2 * 7_615_616_512
    for config in TINY.values():
        state = nnx.state(nnx.eval_shape(lambda config=config: gpu_decode.random_model(config)))
        assert gpu_decode.weight_bytes(config)[0] == sum(2 * leaf.size for leaf in jax.tree.leaves(state))
    row = 32 * 8 * 16384 * 128 * 4 + 8 * 128256
    limit = total + gpu_decode.SLACK + 5 * row + 1
    assert gpu_decode.largest_batch(R1["r1-llama-8b"], 16384, limit) == 5
    assert gpu_decode.largest_batch(R1["r1-llama-8b"], 16384, total) == 0


@pytest.mark.slow
def test_a_wrong_op_is_told():
    case = gpu_ops._case(2, 2, 2, 40, 16)
    right = gpu_ops._cell(lambda: gpu_ops._attention_error(gpu_ops.ATTENTION["xla"], case))
    assert right["right"]

    def off(*arrays, scale):
        out, k, v, weights = gpu_ops.ATTENTION["xla"](*arrays, scale=scale)
        return out * jnp.asarray(1.03, out.dtype), k, v, weights

    assert not gpu_ops._cell(lambda: gpu_ops._attention_error(off, case))["right"]


def test_the_rival_says_why_it_cannot():
    found = gpu_rival.ask(TINY["tiny-qwen"], batch=2, prompt=8, new_tokens=2, seconds=300.0)
    assert "CUDA" in found["skipped"] or "not installed" in found["skipped"]
