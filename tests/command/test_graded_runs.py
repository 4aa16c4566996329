"""Runs of tasks that are graded in another process: while decoding, through its death, and not for other tasks."""

import contextlib
import json
import os
import subprocess
import sys
import time

import psutil
import pytest

from jkv.config.decode import DecodeConfig
from jkv.engine.engine import Engine
from jkv.engine.events import Completion
from jkv.errors import UserError
from jkv.grading import Grader, Verdict
from jkv.grading.queue import GradingQueue
from jkv.run import decode as runner
from jkv.tasks.problem import Problem
from tests.command.conftest import read_jsonl, write_rows

TOWER = "10^{10^{10}}"


def marked(grader, texts_and_references, *, grading="math", within=None):
    with GradingQueue(grader) as queue:
        for i, (text, reference) in enumerate(texts_and_references):
            queue.add({"id": i, "text": text}, Problem(str(i), (1,), reference, grading=grading), thinking=True)
        return list(queue.graded(within))


def test_a_sample_that_can_not_be_graded_says_so_and_the_others_are():
    answers = [("</think>\\boxed{\\frac{2}{4}}", "0.5"), (f"</think>\\boxed{{{TOWER}}}", "42"),
               ("</think>\\boxed{2^3}", "8"), ("\\boxed{8}", "8"), ("</think> \\boxed{9}", None)]  # fmt: skip
    with Grader(limit=1.0) as grader:
        rows = marked(grader, answers)
    assert [row["id"] for row in rows] == [0, 1, 2, 3, 4]
    assert [row["correct"] for row in rows] == [True, None, True, False, None]
    assert [row.get("ungraded") for row in rows] == [None, "timeout", None, None, None]
    assert [row["answer"] for row in rows] == ["\\frac{2}{4}", TOWER, "2^3", None, "9"]


def test_letters_need_no_worker():
    with Grader() as grader:
        rows = marked(grader, [("</think>\\boxed{\\text{(b)}}", "B"), ("</think> so: ?", "B")], grading="letter")
        assert grader.pid is None
    assert [(row["answer"], row["correct"]) for row in rows] == [("B", True), ("so: ?", False)]


class Slow(Grader):
    """Takes its time."""

    def grade(self, answer: str, reference: str) -> Verdict:
        time.sleep(0.3)
        return Verdict(True)


def test_decoding_does_not_wait_for_grades():
    with Slow() as grader, GradingQueue(grader) as queue:
        started = time.monotonic()
        for i in range(4):
            queue.add({"id": i, "text": "</think>1"}, Problem(str(i), (1,), "2", grading="math"), thinking=True)
            assert list(queue.graded()) == []
        assert time.monotonic() - started < 0.2
        assert [row["id"] for row in queue.graded(0.75)] == [0, 1]
        assert [row["id"] for row in queue.graded(None)] == [2, 3]
        assert list(queue.graded(None)) == []


class Dying(Grader):
    """A worker is killed before every other answer."""

    asked = 0

    def grade(self, answer: str, reference: str) -> Verdict:
        self.asked += 1
        if self.asked % 2 and self.pid is not None:
            psutil.Process(self.pid).kill()
        return super().grade(answer, reference)


@pytest.fixture
def graded_task(tmp_path):
    """Prompts of which a random model makes something, graded as mathematics."""
    rows = [{"id": f"p{i}", "prompt": "b = 1 + 2 ? b <think> </think> " + "5 " * (i + 1), "answer": "5",
             "grading": "math"} for i in range(6)]  # fmt: skip
    return write_rows(tmp_path / "task.jsonl", rows)


def config(wordy, task, out, **more):
    return DecodeConfig(
        model=str(wordy), task=str(task), policy="window", budget=24, window=4, max_new_tokens=16, batch_size=3,
        temperature=1.5, top_k=0, top_p=1.0, quiet=True, out=str(out), **more,
    )  # fmt: skip


def test_the_run_goes_on_when_the_worker_dies(wordy, graded_task, tmp_path, monkeypatch):
    monkeypatch.setattr("jkv.grading.queue.extract_answer", lambda text, thinking: "\\frac{10}{2}")
    with Dying() as grader:
        grader.grade("1", "2")
        summary = runner.run(config(wordy, graded_task, tmp_path / "out"), grader=grader)
        assert grader.asked == 7
    rows = read_jsonl(tmp_path / "out" / "samples.jsonl")
    assert len(rows) == 6
    ungraded = [row for row in rows if row["correct"] is None]
    assert summary["ungraded"] == len(ungraded) == 3
    assert {row["ungraded"] for row in ungraded} == {"died"}
    assert summary["pass_at_1"] == 1.0
    # What is there is kept, ungraded samples too: nothing is left to decode.
    again = runner.run(config(wordy, graded_task, tmp_path / "out"))
    assert again["ungraded"] == 3
    assert again["tokens"] == summary["tokens"]
    # Another grading is another run.
    write_rows(graded_task, [{**row, "grading": "exact"} for row in read_jsonl(graded_task)])
    with pytest.raises(UserError, match="the task's prompts or answers have changed"):
        runner.run(config(wordy, graded_task, tmp_path / "out"))


def test_what_is_finished_is_kept_when_the_run_is_interrupted(wordy, graded_task, tmp_path, monkeypatch):
    """The grade of a finished sample is waited for, a moment; its worker is gone afterwards."""
    monkeypatch.setattr("jkv.grading.queue.extract_answer", lambda text, thinking: "\\frac{10}{2}")
    before = workers_of(os.getpid())
    decode = Engine.run
    finished = []

    def interrupted(self, *arguments, **options):
        for event in decode(self, *arguments, **options):
            if isinstance(event, Completion):
                finished.append(event.request.id)
            yield event
            if len(finished) == 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "run", interrupted)
    monkeypatch.setattr(runner, "GRADES_WITHIN_S", 60.0)
    with pytest.raises(KeyboardInterrupt, match="3 of 6 samples are finished and kept"):
        runner.run(config(wordy, graded_task, tmp_path / "out"))
    rows = read_jsonl(tmp_path / "out" / "samples.jsonl")
    assert [row["id"] for row in rows] == finished
    assert all(row["correct"] is True for row in rows)
    assert workers_of(os.getpid()) == before


def workers_of(pid: int) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if any("jkv.grading.worker" in word for word in child.cmdline()):
                found.append(child)
    return found


HEAVY = ("datasets", "pandas", "pyarrow", "sympy", "math_verify", "latex2sympy2_extended", "antlr4", "torch")
LOADS = """
from jkv import decode
from jkv.run import decode as runner
from jkv.load import load
from jkv.tasks import load_task
assert decode.parse([]).task == "demo"
assert len(load_task("demo", load("demo-llama").tokenizer, model="demo-llama", limit=2)) == 2
"""
RUNS = """
from jkv import decode
decode.main(["--limit", "1", "--batch-size", "1", "--max-new-tokens", "4", "--quiet"])
"""


@pytest.mark.parametrize("work", [LOADS, pytest.param(RUNS, marks=pytest.mark.slow)], ids=["loads", "runs"])
def test_the_demo_pays_for_no_grader_and_no_data_set(work):
    script = f"""
import json, sys
{work}
print(json.dumps(sorted(set({HEAVY}) & set(sys.modules))))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.stdout == "[]\n", done.stderr


def test_the_clock_goes_on(wordy, graded_task, tmp_path, monkeypatch):
    """Seconds and steps of a run that was broken off count: they are those of all sessions."""
    decode, out = Engine.run, tmp_path / "out"

    def interrupted(self, *arguments, **options):
        for event in decode(self, *arguments, **options):
            yield event
            if isinstance(event, Completion):
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            runner.run(config(wordy, graded_task, out))
    before = json.loads((out / "timings.json").read_text("utf-8"))
    long_ago = {name: value + 1000 for name, value in before.items()}
    (out / "timings.json").write_text(json.dumps(long_ago), "utf-8")
    summary = runner.run(config(wordy, graded_task, out))
    after = json.loads((out / "timings.json").read_text("utf-8"))
    assert all(after[name] > long_ago[name] for name in before)
    assert summary["wall_s"] == after["wall"]
