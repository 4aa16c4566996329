"""``python -m jkv.sweep``: all cells run, are compared in pairs, continue, or are refused beforehand."""

import csv
import io
import json

import pytest

from jkv import cli, sweep
from jkv.errors import UserError
from jkv.report.results import BASELINE
from tests.command.conftest import read_jsonl, write_rows
from tests.tiny import prompts


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
    assert "rkv half" in capsys.readouterr().out

    runs = sorted(out.glob("runs/*/*/*/samples.jsonl"))
    assert len(runs) == 7
    before = [path.read_bytes() for path in runs]
    sweep.main(["--config", str(config), "--out", str(out), "--quiet"])
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


def test_no_place_for_the_results(config):
    with pytest.raises(UserError, match="--out"):
        sweep.parse(["--config", str(config)])
