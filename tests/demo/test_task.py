"""The generator, and the arithmetic of the thought, worked out again by a checker that shares no code with it."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jkv.demo import task
from jkv.demo.tokenizer import SPECIAL, vocabulary

seeds = st.integers(0, 2**31 - 1)


def _compute(expression: str) -> int:
    x, op, y = expression.split()
    return {"+": int(x) + int(y), "-": int(x) - int(y), "*": int(x) * int(y)}[op] % 10


def _parts(pattern: str, text: str) -> tuple[str, ...]:
    found = re.match(pattern, text)
    assert found, f"{text!r} doesn't begin like {pattern}"
    return found.groups()


def _check(prompt: str, solution: str) -> str:
    """Follow the thought from the prompt alone. Returns the answer that the prompt calls for."""
    listed, asked = _parts(r"<bos> (.*) \? ([a-f ]+) <think>$", prompt)
    definitions = dict(item.split(" = ") for item in listed.split(" ; "))
    mentioned = set(asked.split()) | {word for text in definitions.values() for word in text.split()}
    (thought,) = _parts(r"(.*) </think> [a-f0-9 ]+ <eos>$", solution)
    values: dict[str, int] = {}
    for name, block in zip(sorted(definitions), re.split(r" ?\bnow ", thought)[1:], strict=True):
        work, said, check = _parts(r"(.*?) \. so (.*?) \. check (.*?) ok \.", block)
        head, *chain = work.split(" = ")
        assert head == name
        assert chain[0] == definitions[name]
        substituted = " ".join(str(values.get(word, word)) for word in chain[0].split())
        values[name] = _compute(substituted)
        constant = substituted == chain[0]
        assert chain[1:] == ([] if constant else [substituted]) + [str(values[name])]
        assert said == f"{name} {values[name]} {'keep' if name in mentioned else 'drop'}"
        inverse, _, result = check.rpartition(" = ")
        assert _compute(inverse) == int(result)
    return " ".join(f"{name} {values[name]}" for name in asked.split())


@settings(max_examples=40, deadline=None)
@given(seed=seeds)
def test_thought_is_sound(seed: int):
    for problem in [*task.problems(10, seed), *task.generate(seed, 10)]:
        for filler in (True, False):
            answer = _check(problem.prompt, problem.solution(filler=filler))
            assert answer == problem.answer
            assert problem.grade(f"{problem.prompt} {problem.solution(filler=filler)}")


@settings(max_examples=40, deadline=None)
@given(seed=seeds, n=st.integers(1, 20))
def test_problems_are_a_function_of_seed_and_index(seed: int, n: int):
    assert task.problems(n, seed) == task.problems(20, seed)[:n]
    assert [p.id for p in task.problems(n, seed)] == [f"demo-{i:05d}" for i in range(n)]
    assert task.generate(seed, n) == task.generate(seed, n)


@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_streams_differ(seed: int):
    # Small problems may coincide; twenty in a row don't.
    evaluation = [p.prompt for p in task.problems(20, seed)]
    assert evaluation != [p.prompt for p in task.generate(seed, 20)]
    assert evaluation != [p.prompt for p in task.problems(20, seed + 1)]
    assert [p.prompt for p in task.generate(seed, 20)] != [p.prompt for p in task.generate(seed, 20, index=1)]


@settings(max_examples=20, deadline=None)
@given(seed=seeds, size=st.integers(2, 6))
def test_shape_of_a_problem(seed: int, size: int):
    for problem in task.generate(seed, 10, variables=(size,)):
        names = [d.name for d in problem.definitions]
        assert names == list(task.NAMES[:size])
        assert sorted(problem.shown) == list(range(size))
        assert 1 <= len(problem.asked) <= min(3, size)
        assert list(problem.asked) == sorted(set(problem.asked) & set(names))
        for i, d in enumerate(problem.definitions):
            assert {d.left, d.right} <= {*task.DIGITS, *names[:i]}
            asked_before = set(names[:i]) & set(problem.asked)
            if asked_before:
                assert {d.left, d.right} <= {*task.DIGITS, *asked_before}


def test_sizes_of_the_task():
    drawn = task.problems(2000, 7)
    prompts = [len(p.prompt.split()) for p in drawn]
    completions = [len(p.solution().split()) for p in drawn]
    assert (min(prompts), max(prompts)) == (15, 41)
    assert 160 < sum(completions) / len(completions) < 175
    assert max(p + c for p, c in zip(prompts, completions, strict=True)) == 297
    assert {len(p.definitions) for p in drawn} == {2, 3, 4, 5, 6}


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("</think> a 1 b 2 <eos>", True),
        ("thought </think> a 1 b 2", True),
        ("thought</think>  a 1\tb 2<eos> ", True),
        ("a 1 b 2 <eos>", False),
        ("</think> a 1 b 3 <eos>", False),
        ("</think> a 1 <eos>", False),
        ("</think> b 2 a 1 <eos>", False),
        ("</think> a 1 b 2 b 2", False),
        ("</think> a 1 b 2 </think> a 1 b 2", False),
        ("", False),
    ],
)
def test_grade(said: str, right: bool):
    problem = task.Problem(
        id="p",
        definitions=(task.Definition("a", "0", "+", "1"), task.Definition("b", "a", "*", "2")),
        shown=(1, 0),
        asked=("a", "b"),
        filler=((0, 0), (1, 1)),
    )
    assert problem.answer == "a 1 b 2"
    assert problem.prompt == "<bos> b = a * 2 ; a = 0 + 1 ? a b <think>"
    assert problem.grade(said) is right


def test_filler_is_told_from_work():
    sentences = [sentence for pool in task.FILLER for sentence in pool]
    assert all(len(sentence.split()) == 8 and sentence.endswith(" .") for sentence in sentences)
    words = {word for sentence in sentences for word in sentence.split()} - {"."}
    work = {*task.NAMES, *task.DIGITS, *task.OPERATORS, *SPECIAL, *"=;?", "now", "so", "keep", "drop", "check", "ok"}
    assert not words & work
    assert set(vocabulary()) == words | work | {"."}
    (problem,) = task.problems(1)
    segments = problem.segments()
    assert " ".join(text for text, is_filler in segments if not is_filler) == problem.solution(filler=False)
    assert sum(len(text.split()) for text, is_filler in segments if is_filler) == 16 * len(problem.definitions)


def test_no_block_begins_with_an_evaluation_problem():
    """Both streams take a seed and an index. Small problems may coincide; twenty in a row don't."""
    evaluation = [p.prompt for p in task.problems(20, seed=3)]
    training = [task.generate(3, 1, index=i)[0].prompt for i in range(20)]
    assert sum(a == b for a, b in zip(evaluation, training, strict=True)) < 10
