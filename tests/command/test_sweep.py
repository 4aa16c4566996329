"""``python -m jkv.sweep``: all cells run, are compared in pairs, continue, or are refused beforehand."""

import csv
import io
import json

import pytest

from jkv import decode, sweep
from jkv.engine.executables import Executables
from jkv.errors import UserError
from jkv.report.results import BASELINE
from jkv.run import sweep as grid
from jkv.run.sweep import run_sweep
from jkv.terminal import command as cli
from tests.command.conftest import read_jsonl, write_rows
from tests.support.tiny import prompts


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """Prompts with answers, which a random model never gives."""
    rows = [{"id": f"p{i}", "prompt_ids": ids, "answer": "7"} for i, ids in enumerate(prompts(5, 9, 20))]
    return write_rows(tmp_path_factory.mktemp("graded") / "graded.jsonl", rows)


@pytest.fixture
def config(wordy, graded, tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(
        f"""
models: [{wordy}]
tasks: [{graded}]
budgets: [24, 32]
max_new_tokens: 30
batch_size: 3
pin_prompt: false
window: 2
policies:
  - {{policy: random, name: "{BASELINE}", pin_prompt: true, window: 0}}
  - window
  - {{policy: rkv, name: rkv half, options: {{lam: 0.5}}, retain: 20}}
""",
        encoding="utf-8",
    )
    return path


def test_a_sweep_runs_every_cell_and_continues(config, tmp_path, capsys):
    out = tmp_path / "out"
    sweep.main(["--config", str(config), "--out", str(out)])
    rows = list(csv.DictReader(io.StringIO((out / "results.csv").read_text("utf-8"))))
    labels = ["full", *[label for label in (BASELINE, "window", "rkv half") for _ in range(2)]]
    assert [row["policy"] for row in rows] == labels
    assert [row["budget"] for row in rows] == ["", "24", "32", "24", "32", "24", "32"]
    assert [row["retain"] for row in rows[5:]] == ["20", "20"]
    for row in rows:
        assert row["samples"] == "3"
        assert float(row["pass_at_1"]) == float(row["vs_full"]) == 0
        assert row["recompiles"] == "0"
        assert int(row["peak_slots"]) <= int(row["budget"] or 10**9)
    markdown = (out / "results.md").read_text("utf-8")
    assert "| rkv half | +0.0 [+0.0, +0.0] | +0.0 [+0.0, +0.0] |" in markdown
    printed = capsys.readouterr()
    assert "rkv half" in printed.out
    assert "7 of 7: Pass@1 0.0 % [0.0, 0.0]" in printed.err
    assert {path.name for path in out.iterdir()} == {
        "runs", "results.csv", "results.md", "figure.png", "figure.svg", "policies.png", "policies.svg",
    }  # fmt: skip

    runs = sorted(out.glob("runs/*/*/*/samples.jsonl"))
    assert len(runs) == 7
    before = [path.read_bytes() for path in runs]
    sweep.main(["--config", str(config), "--out", str(out), "--quiet"])
    assert [path.read_bytes() for path in runs] == before
    # Another sweep's results don't get mixed with these, and a run is no sweep.
    # Before anything is decoded: not even a cell that isn't there yet.
    first = next(path.parent for path in runs if path.parent.name == "full")
    first.rename(tmp_path / "aside")
    with pytest.raises(UserError, match="limit None, now 2"):
        sweep.main(["--config", str(config), "--out", str(out), "--limit", "2"])
    assert not first.exists()
    (tmp_path / "aside").rename(first)
    with pytest.raises(UserError, match="holds a run"):
        sweep.main(["--config", str(config), "--out", str(runs[0].parent)])
    with pytest.raises(UserError, match="holds a sweep"):
        decode.main(["--limit", "1", "--out", str(out)])
    assert [path.read_bytes() for path in runs] == before
    # A cell is a run of `jkv.decode` like any other.
    summary = json.loads((runs[0].parent / "summary.json").read_text("utf-8"))
    assert summary["samples"] == len(read_jsonl(runs[0])) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policies", "window", "nope"], "nope at 24: --policy: no policy 'nope'"),
        (["--policies", "window", "window"], "--policies: names something twice"),
        (["--budgets", "8", "--policies", "window"], "prompt has 9 tokens, the budget 8"),
        (["--budgets", "24", "x"], "--budgets"),
        (["--window", "24"], "24 don't fit the 21 slots"),
        (["--policies", "trimkv"], "trimkv needs learned gates"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_decoded(arguments, message, config, tmp_path, capsys):
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as leaving:
        cli.run(sweep.main, ["--config", str(config), "--out", str(out), *arguments])
    assert leaving.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line
    assert not list(out.glob("runs/**/samples.jsonl"))


def test_a_mesh_that_the_second_model_cannot_share_is_refused_before_the_first_is_read(tmp_path, monkeypatch):
    def run_mesh(config, model=None):
        assert model is not None
        if model.architecture == "qwen2":
            raise UserError("can't be shared", where="--mesh")

    monkeypatch.setattr(grid, "run_mesh", run_mesh)
    monkeypatch.setattr(grid, "load", lambda *_: pytest.fail("a model was read"))
    words = ["--models", "demo-llama", "demo-qwen", "--policies", "window", "--budgets", "96", "--mesh", "data=1"]
    with pytest.raises(UserError, match=r"demo-qwen.*--mesh: can't be shared"):
        run_sweep(sweep.parse([*words, "--out", str(tmp_path), "--quiet"]))


def test_entries_that_say_nothing_sensible_are_refused(config, tmp_path):
    text = config.read_text("utf-8")
    for old, new, message in (
        ("- window", "- {policy: window, windw: 3}", "unknown key 'windw'"),
        ("- window", "- {policy: window, window: many}", "valid integer, got 'many'"),
        ("- window", "- 7", "neither a policy's name"),
        ("- window", "- {policy: snapkv, name: rkv half}", "two entries are called 'rkv half'"),
    ):
        config.write_text(text.replace(old, new), "utf-8")
        with pytest.raises(UserError, match=message):
            sweep.main(["--config", str(config), "--out", str(tmp_path / "none")])


def test_models_and_the_full_cache_may_have_words_of_their_own(config):
    text = config.read_text("utf-8")
    model = text.split("models: [")[1].split("]")[0]
    text = text.replace(f"models: [{model}]", f"models:\n  - {{model: {model}, name: R1, ratio: 0.5, batch_size: 2}}")
    config.write_text(text.replace("policies:\n", "policies:\n  - {policy: full, batch_size: 1}\n"), "utf-8")
    cells = list(sweep.parse(["--config", str(config), "--out", "x"]).cells())
    assert [(cell.model, cell.label, cell.budget) for cell in cells[:2]] == [("R1", "full", None), ("R1", BASELINE, 24)]
    assert [cell.config.batch_size for cell in cells[:2]] == [1, 2]
    assert cells[0].directory == "runs/R1/" + cells[0].directory.split("/", 2)[2]
    rkv = cells[-1].config
    assert (rkv.ratio, rkv.retain) == (None, 20)  # the policy's word goes before the model's
    assert (cells[1].config.ratio, cells[1].config.retain) == (0.5, None)
    without = sweep.parse(["--config", str(config), "--out", "x", "--policies", "window", "--no-full"])
    assert [cell.budget for cell in without.cells()] == [24, 32]


def test_programs_are_shared_by_tasks(wordy, graded, tmp_path, monkeypatch):
    """Runs that differ in task alone compile nothing anew, and each has its own time."""
    second = tmp_path / "second.jsonl"
    second.write_bytes(graded.read_bytes())
    compiled: list[str] = []
    compile_ = Executables._compile
    monkeypatch.setattr(Executables, "_compile", lambda *a: (compiled.append(a[1].name), compile_(*a))[1])
    config = sweep.parse([
        "--models", str(wordy), "--tasks", str(graded), str(second), "--policies", "window", "--budgets", "24", "32",
        "--no-full", "--max-new-tokens", "30", "--batch-size", "3", "--window", "2", "--quiet",
        "--out", str(tmp_path / "out"),
    ])  # fmt: skip
    results = run_sweep(config)
    assert [(r.budget, r.task) for r in results] == [(b, str(t)) for b in (24, 32) for t in (graded, second)]
    assert len(compiled) == 2 * 2  # decode and one prefill a budget
    assert [r.summary["compile_s"] > 0 for r in results] == [True, False, True, False]
    for one, other in zip(results[::2], results[1::2], strict=True):
        same = ("tokens", "evictions", "mean_slots", "peak_slots")
        assert [one.summary[name] for name in same] == [other.summary[name] for name in same]
        for r in (one, other):
            assert r.summary["tps"] == pytest.approx(r.summary["tokens"] / r.summary["wall_s"])
            assert r.summary["recompiles"] == 0
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "results.csv").read_text("utf-8"))))
    assert [row["task"] for row in rows[4:]] == ["mean", "mean"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--overlay", "paper"], "has nothing about"),
        (["--overlay", "no.json"], "can't be read"),
        (["--figure", "rkv"], "--figure: no policy 'rkv' here"),
        (["--topology", "v5e:2x4"], "--topology: is read by --dry-run only"),
        (["--dry-run", "--topology", "v9:1"], "'v9:1' is not a topology"),
        (["--dry-run", "--tasks", "no.jsonl"], "no.jsonl: can't be read"),
        (["--dry-run", "--tasks", "nope"], "no task 'nope'"),
        (["--dry-run", "--models", "nope"], "no such model: 'nope'"),
    ],
)
def test_figures_and_dry_runs_refuse_what_makes_no_sense(arguments, message, config, tmp_path, capsys):
    with pytest.raises(SystemExit) as leaving:
        cli.run(sweep.main, ["--config", str(config), "--out", str(tmp_path / "out"), *arguments])
    assert leaving.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line
    assert not (tmp_path / "out").exists()


def test_a_dry_run_of_local_files(config, capsys, tmp_path):
    sweep.main(["--config", str(config), "--dry-run", "--samples", "2"])
    printed = capsys.readouterr().out
    assert "7 runs" in printed
    assert f"{7 * 3 * 2 * 30:,} tokens in all" in printed


def test_no_place_for_the_results(config):
    with pytest.raises(UserError, match="--out"):
        sweep.parse(["--config", str(config)])
