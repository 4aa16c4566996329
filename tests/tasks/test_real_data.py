"""AIME 2024 and MATH-500 themselves: references are right, other problems' answers are wrong, and they run end to end.

JKV_DATA names the folder that holds them.
"""

import json
import random
import re
import types

import pytest

from jkv.grading import Verdict
from jkv.grading.answers import extract_answer
from jkv.grading.queue import GradingQueue
from jkv.tasks.problem import Problem
from tests.command.conftest import read_jsonl
from tests.support.chatty import save_tokenizer
from tests.support.tiny import Tiny

WRONG_PAIRS = 1000


@pytest.fixture(scope="module")
def problems(real_data):
    return [row for name in ("aime24", "math500") for row in read_jsonl(real_data / f"{name}.jsonl")]


def test_every_reference_solution_is_right(problems, grader):
    assert len(problems) == 530
    rows = []
    with GradingQueue(grader) as queue:
        for i, row in enumerate(problems):
            problem = Problem(str(i), (1,), str(row["answer"]), grading="math")
            text = "<think>x</think>" + row["solution"]
            queue.add({"id": i, "text": text}, problem, thinking=True)
        rows.extend(queue.graded(None))
    assert [row["id"] for row in rows] == list(range(530))
    wrong = [(row["id"], row["answer"], problems[row["id"]]["answer"]) for row in rows if row["correct"] is not True]
    assert not wrong


@pytest.mark.slow
def test_references_are_right_by_mathematics_alone(problems, grader):
    """Spelt in another way, so that neither text is the other: what is graded then is what was parsed."""
    wrong = []
    for row in problems:
        answer = extract_answer("</think>" + row["solution"])
        words = "\\text{" in answer or any(len(word) > 3 for word in answer.split() if word.isalpha())
        spelt = answer if words else respelt(answer)
        if grader.grade(spelt, str(row["answer"])).correct is not True:
            wrong.append((spelt, row["answer"]))
    assert not wrong


def respelt(answer: str) -> str:
    """The same mathematics in other words, where that is simple."""
    if answer.lstrip("-").isdigit():
        return f"\\frac{{{2 * int(answer)}}}{{2}}"
    answer = re.sub(r",(?!\s|\\!|\d{3}(?!\d))", ", ", answer)
    return answer.replace("\\frac", "\\dfrac").replace("\\sqrt", "\\sqrt ").replace("+", " + ")


@pytest.mark.slow
def test_answers_of_other_problems_are_wrong(problems, grader):
    """Pairs at random whose references are different numbers or texts."""
    answers = [str(row["answer"]) for row in problems]
    rng = random.Random(0)
    right = []
    pairs = 0
    while pairs < WRONG_PAIRS:
        i, j = rng.randrange(len(answers)), rng.randrange(len(answers))
        if answers[i] == answers[j]:
            continue
        pairs += 1
        if grader.grade(answers[j], answers[i]) != Verdict(False):
            right.append((answers[j], answers[i]))
    assert not right


@pytest.fixture(scope="module")
def chatty(tmp_path_factory):
    """A tiny random model with a tokenizer of bytes and a chat template that begins a thought."""
    directory = tmp_path_factory.mktemp("chatty")
    fast = save_tokenizer(directory)
    Tiny("chatty", "qwen2", 1, 2, vocabulary=320).save(directory)
    return types.SimpleNamespace(path=directory, tokenizer=fast)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("aime24", 30), ("math500", 500)])
def test_end_to_end(name, count, real_data, chatty, run, tmp_path, monkeypatch):
    monkeypatch.setenv("JKV_DATA", str(real_data))
    done = run(
        "--model", chatty.path, "--task", name, "--policy", "window", "--budget", 512, "--retain", 128, "--window", 8,
        "--batch-size", 64,
        "--long-prompts", "evict", "--max-new-tokens", 8, "--out", tmp_path / "out", "--quiet",
    )  # fmt: skip
    assert done.code == 0, done.err
    rows = {row["id"]: row for row in read_jsonl(tmp_path / "out" / "samples.jsonl")}
    given = read_jsonl(real_data / f"{name}.jsonl")
    assert len(rows) == len(given) == count
    for row in given:
        sample = rows[str(row["id"] if name == "aime24" else row["unique_id"])]
        text = chatty.tokenizer.apply_chat_template(
            [{"role": "user", "content": row["problem"].strip() + "\nPlease reason step by step, and put your final "
              "answer within \\boxed{}."}], tokenize=False, add_generation_prompt=True,
        )  # fmt: skip
        assert sample["prompt_tokens"] == len(chatty.tokenizer.encode(text, add_special_tokens=False))
        # A thought that isn't ended has no answer: that is wrong, not ungraded.
        assert sample["correct"] is False or "</think>" in sample["text"]
        assert "ungraded" not in sample or sample["correct"] is None
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["samples"] == count
    assert summary["pass_at_1"] is not None
