"""configs/sweep_paper.yaml: the paper's figure, and it runs end to end on tiny models of its families."""

import csv
import io
import json
import pathlib

import pytest
import yaml

import jkv.models.predictor
from converters.config import read_config
from jkv import sweep
from jkv.engine.executables import Executables
from jkv.files.locate import locate
from jkv.files.shipped import CONFIGS, FIGURES, OF_HUB
from jkv.planning import dry_run
from jkv.report.published import read_published
from jkv.report.results import MEAN
from tests.command.conftest import read_jsonl
from tests.support.chatty import VOCABULARY, save_tokenizer
from tests.support.tiny import LLAMA3, Tiny
from tests.tasks.stand_ins import LAYOUTS, write

PAPER = CONFIGS / "sweep_paper.yaml"
FIGURE = json.loads((FIGURES / "dynts.json").read_text("utf-8"))
FAMILIES = {
    "R1-Llama": Tiny("r1-llama", "llama", 2, 4, (("rope_parameters", LLAMA3),), VOCABULARY),
    "R1-Qwen": Tiny("r1-qwen", "qwen2", 1, 7, (), VOCABULARY),
}


def test_it_is_the_papers_figure():
    config = sweep.parse(["--config", str(PAPER), "--out", "x"])
    assert config.tasks == FIGURE["tasks"]
    assert config.budgets == FIGURE["budgets"]
    assert (config.samples, config.max_new_tokens) == (FIGURE["samples"], FIGURE["max_new_tokens"])
    assert (config.temperature, config.top_p, config.top_k) == (0.6, 0.95, 20)
    cells = list(config.cells())
    assert len(cells) == 2 * 6 * 4
    for cell in cells:
        panel = FIGURE["panels"][cell.model]
        assert cell.config.model == panel["hf_id"] in OF_HUB
        assert cell.label == cell.config.policy == config.drawn == "dynts"
        rule = cell.config.retention(cell.config.make_policy(), longest=1)
        assert cell.budget is not None
        assert rule.retain == panel["window"] + int(panel["ratio"] * (cell.budget - panel["window"]))
        assert (rule.budget, rule.window, rule.pin_prompt) == (cell.budget, panel["window"], True)
    assert read_published("paper").of("R1-Llama") is not None


def test_a_dry_run_needs_no_weights(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # a shipped file is found from anywhere
    monkeypatch.setattr(jkv.models.predictor, "load_predictor", None)
    sweep.main(["--config", "configs/sweep_paper.yaml", "--dry-run"])
    printed = capsys.readouterr().out
    # (30 + 30 + 40 + 198) problems x 5 samples x 16384 tokens; 32 rows of 2 * 32 * 8 * 128 numbers of 2 bytes a slot.
    assert f"{298 * 5 * 16384:,}" in printed
    assert f"{12 * 298 * 5 * 16384:,} tokens in all" in printed
    assert f"{32 * 2500 * 2 * 32 * 8 * 128 * 2 / 2**30:.1f} GiB" in printed
    assert "15.0 GiB" in printed  # 8,030,261,248 parameters
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_counts_int8(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    words = "--models demo-llama --policies window --budgets 96 --no-full --batch-size 8 --dtype bfloat16 --dry-run"
    sizes = {}
    for int8 in ((), ("--weights", "int8"), ("--kv", "int8")):
        config = sweep.parse([*words.split(), *int8])
        (row,) = (dry_run._size(cell) for cell in config.cells())
        sizes[int8] = row.weights, row.kv
    c = read_config(locate("demo-llama"))
    d, f, v, layers = c.d_model, c.d_ff, c.vocab_size, c.n_layers
    n, k, h = c.n_heads, c.n_kv_heads, c.head_dim
    matrices = v * d * (1 if c.tied_head else 2) + layers * (2 * d * (n + k) * h + 3 * d * f)
    vectors = (2 * layers + 1) * d
    channels = v * (1 if c.tied_head else 2) + layers * ((n + 2 * k) * h + d + 2 * f + d)
    assert not c.qkv_bias
    assert sizes[()] == (2 * (matrices + vectors), layers * 8 * k * 96 * h * 2 * 2)
    assert sizes["--weights", "int8"] == (matrices + 4 * channels + 2 * vectors, sizes[()][1])
    assert sizes["--kv", "int8"] == (sizes[()][0], layers * 8 * k * 96 * (h + 4) * 2)


@pytest.mark.slow
def test_end_to_end(tmp_path, monkeypatch, capsys):
    data = tmp_path / "data"
    data.mkdir()
    for task in FIGURE["tasks"]:
        write(task, ".jsonl", data)
    monkeypatch.setenv("JKV_DATA", str(data))
    config = yaml.safe_load(PAPER.read_text("utf-8"))
    # What stands for 2500 to 5000: the prompts, a letter or so a token, are pinned and must fit.
    config |= {
        "budgets": [256, 272, 288, 304, 320, 336],
        "max_new_tokens": 260,
        "samples": 2,
        "limit": 3,
        "batch_size": 6,
    }
    for entry in config["models"]:
        directory = tmp_path / entry["name"]
        FAMILIES[entry["name"]].save(directory)
        save_tokenizer(directory)
        jkv.models.predictor.save_predictor(directory, jkv.models.predictor.random_predictor(40))
        entry |= {"model": str(directory), "window": 16, "ratio": 0.9}
    mine = tmp_path / "sweep.yaml"
    mine.write_text(yaml.safe_dump(config), "utf-8")
    compiled: list[str] = []
    compile_ = Executables._compile
    monkeypatch.setattr(Executables, "_compile", lambda *a: (compiled.append(a[1].name), compile_(*a))[1])
    out = tmp_path / "out"
    sweep.main(["--config", str(mine), "--overlay", "paper", "--out", str(out), "--quiet"])

    rows = list(csv.DictReader(io.StringIO((out / "results.csv").read_text("utf-8"))))
    assert len(rows) == 48 + 12
    for row in rows[:48]:
        assert int(row["samples"]) == 6
        assert int(row["peak_slots"]) == int(row["budget"])
        assert int(row["evictions"]) > 0
        assert float(row["tps"]) == pytest.approx(int(row["tokens"]) / float(row["wall_s"]))
        assert row["recompiles"] == "0"
    assert [row["task"] for row in rows[48:]] == [MEAN] * 12
    for name in ("figure.png", "figure.svg", "policies.png", "results.md"):
        assert (out / name).stat().st_size > 0
    assert "Pass@1, published" in (out / "figure.svg").read_text("utf-8")
    keys = set()
    for path in out.glob("runs/*/*/*/samples.jsonl"):
        keys |= {(*path.parent.parts[-3:], row["id"], row["sample"]) for row in read_jsonl(path)}
    assert len(keys) == 48 * 6
    # One decode program a model and budget, whatever the task, and no more prefills than lengths of prompts.
    assert len(compiled) <= 12 * (1 + 3), compiled
    before = {path: path.read_bytes() for path in out.glob("runs/*/*/*/samples.jsonl")}
    del compiled[:]
    sweep.main(["--config", str(mine), "--out", str(out), "--quiet"])
    assert {path: path.read_bytes() for path in before} == before
    assert compiled == []


def test_stand_ins_are_in_the_benchmarks_layouts():
    assert set(FIGURE["tasks"]) <= set(LAYOUTS)
    assert pathlib.Path(PAPER).is_file()
