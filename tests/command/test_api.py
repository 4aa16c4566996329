"""jkv from Python: what ``jkv.decode`` and ``jkv.sweep`` return, that they do what commands do, what they refuse."""

import dataclasses
import gc
import json
import subprocess
import sys
import types

import pytest

import jkv
from jkv.errors import UserError
from jkv.policies import Needs, Policy, policy_names
from jkv.terminal.notebook_line import LINE, StatusLine
from jkv.terminal.screen import Screen
from tests.command.conftest import read_jsonl
from tests.support.tiny import prompts

WORDS = {"policy": "window", "budget": 32, "max_new_tokens": 48, "ignore_eos": True, "batch_size": 2}


@pytest.fixture(scope="module")
def rows():
    """The problems, as a list."""
    return [{"id": f"q{n}", "prompt_ids": list(ids)} for n, ids in zip((10, 9, 2), prompts(5, 9, 20), strict=True)]


@pytest.fixture(scope="module")
def model(tiny):
    """Loaded once."""
    return jkv.load(tiny)


@pytest.fixture(scope="module")
def decoded(model, rows):
    """A traced run without a place of its own."""
    return jkv.decode(model, task=rows, trace=True, **WORDS)


def test_importing_is_cheap_and_shows_what_there_is():
    code = "import sys, jkv; print('jax' in sys.modules, *[n for n in dir(jkv) if not n.startswith('_')])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert said[0] == "False"
    assert {"decode", "load", "register", "sweep", "train_predictor", "view"} <= set(said)
    for name in ("decode", "load", "sweep", "train_predictor", "view"):
        assert callable(getattr(jkv, name))
        assert getattr(jkv, name).__name__ == f"jkv.{name}", "python -m finds the module"


def test_a_run_is_a_sequence_of_its_samples(decoded):
    assert [row["id"] for row in decoded] == ["q2", "q9", "q10"]
    assert len(decoded) == 3
    assert decoded[0]["finish"] == "length"
    assert decoded.summary["evictions"] == sum(row["evictions"] for row in decoded) > 0
    assert "window: budget 32" in repr(decoded)
    assert "window: budget 32" in decoded._repr_html_()
    assert "tokens were evicted" in decoded._repr_html_()


def test_the_command_draws_the_same_and_either_continues_the_other(decoded, rows, tiny, tmp_path, run):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    words = [f"--{name.replace('_', '-')}={value}" for name, value in WORDS.items() if name != "ignore_eos"]
    out = tmp_path / "out"
    assert run("--model", tiny, "--task", file, *words, "--ignore-eos", "--trace", "--out", out).code == 0
    by_id = {row["id"]: row for row in read_jsonl(out / "samples.jsonl")}
    assert [by_id[row["id"]]["token_ids"] for row in decoded] == [row["token_ids"] for row in decoded]

    again = jkv.decode(tiny, task=file, out=out, trace=True, **WORDS)
    assert again.directory == out
    assert [row["token_ids"] for row in again] == [row["token_ids"] for row in decoded]
    assert again.summary == json.loads((out / "summary.json").read_text("utf-8"))
    assert again.summary["wall_s"] == json.loads((out / "timings.json").read_text("utf-8"))["wall"], "nothing ran again"


def test_a_traced_run_can_be_viewed(decoded):
    view = decoded.view(id="q9", eviction=1)
    assert view.histories[0].id == "q9"
    assert view._repr_html_().startswith("<iframe")
    assert len(jkv.view(decoded, decoded).histories) == 2


def test_what_is_refused(model, rows):
    def refusal(call, *arguments, **words):
        with pytest.raises(UserError) as error:
            call(*arguments, **words)
        assert error.value._render_traceback_() == [f"UserError: {error.value}"], "a notebook shows the line alone"
        return str(error.value)

    assert refusal(jkv.decode, budgets=3).startswith("unknown argument 'budgets'; names are config, model, ")
    assert refusal(jkv.decode, budget="many").startswith("budget: ")
    assert refusal(jkv.decode, config="absent.yaml").startswith("absent.yaml: can't be read")
    assert refusal(jkv.decode, model, dtype="bfloat16").startswith("dtype: the model is loaded already")
    assert refusal(jkv.decode, model, task=[{"id": {1}}], **WORDS).startswith("task: a row can't be written as JSON")
    assert "has no prompt" in refusal(jkv.decode, model, task=[{"id": "x"}], **WORDS)
    assert refusal(jkv.load, dtype="float8") == "dtype: no dtype 'float8'; give float32 or bfloat16, or leave it out"
    assert refusal(jkv.sweep, policies=["window"]).startswith("--out: ")
    assert refusal(jkv.sweep, dry_run=True).startswith("dry_run: ")
    assert refusal(jkv.train_predictor, epochs=0).startswith("--epochs: ")

    untraced = jkv.decode(model, task=rows[:1], **{**WORDS, "max_new_tokens": 2})
    assert "--trace" in refusal(untraced.view)
    directory = untraced.directory
    assert (directory / "summary.json").is_file()
    del untraced
    gc.collect()
    assert not directory.exists(), "without --out the files go with the object"


def test_names_that_are_not_there():
    with pytest.raises(AttributeError, match="no attribute 'decoed'"):
        _ = jkv.decoed


def own_policy(factor: int) -> type[Policy]:
    """The cell of a notebook, run with another number each time."""
    text = f"lambda self, state, slots: {factor} * slots.positions.astype('float32')"
    cls = type("Old", (Policy,), {"name": "old-stays", "needs": Needs(), "score": eval(text), "__module__": "__main__"})
    return jkv.register(dataclasses.dataclass(frozen=True)(cls))


def test_a_sweep_over_a_policy_of_ones_own(tiny, task, tmp_path):
    own_policy(-1)
    assert "old-stays" in policy_names()
    words = {
        "models": [tiny], "tasks": [task], "policies": ("old-stays",), "budgets": [32], "full": False,
        "max_new_tokens": 40, "batch_size": 2, "out": tmp_path / "sweep",
    }  # fmt: skip
    swept = jkv.sweep(**words)
    (row,) = swept.rows
    assert (row["policy"], row["budget"], row["pass_at_1"]) == ("old-stays", 32, None)
    assert row["tokens"] > 0
    assert "old-stays" in repr(swept)
    assert "| old-stays |" in swept._repr_markdown_()
    data, shown = swept.figure._repr_png_()
    assert data.startswith(b"\x89PNG")
    assert shown["width"] == int.from_bytes(data[16:20], "big") // 2
    assert swept.policies is None, "nothing is graded"

    own_policy(-1)  # the cell is run again, and nothing has changed
    assert jkv.sweep(**words).rows == swept.rows
    own_policy(2)
    with pytest.raises(UserError, match="the policy's code has changed"):
        jkv.sweep(**words)


def test_progress_goes_to_the_line_in_a_notebook_alone(monkeypatch):
    assert Screen(stderr=True).file is sys.stderr
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    screen = Screen(stderr=True)
    assert screen.file is LINE
    assert not screen.is_jupyter
    assert not screen.is_terminal
    assert Screen().file is not LINE


def test_a_notebook_shows_one_line_and_then_none(monkeypatch):
    shown = []

    class Handle:
        def update(self, bundle, raw):
            shown[-1] = bundle["text/plain"]

    def display(bundle, raw, display_id):
        shown.append(bundle["text/plain"])
        return Handle()

    module = types.ModuleType("IPython.display")
    module.display = display
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    line = StatusLine()
    line.clear()
    assert shown == []
    line.write("compiling\n")
    line.write("\n")
    line.write("3 of 8\n")
    assert shown == ["3 of 8"]
    line.clear()
    line.write("next\n")
    assert shown == ["", "next"]
