"""Which completions become traces, and which side of the split they are on."""

import pytest

from jkv.errors import UserError
from jkv.predictor_training.traces import Trace, hold_out, select_traces, think_tokens, thought

THINK, END, EOS = 7, 8, 2
PROMPTS = {"a": (1, 30, THINK), "b": (1, 31, THINK), "c": (1, 32)}


def row(id: str, tokens: list[int], *, sample: int = 0, correct: bool | None = True, finish: str = "eos"):
    return {"id": id, "sample": sample, "token_ids": tokens, "correct": correct, "finish": finish}


GOOD = [40, 41, END, 50, EOS]


def select(rows, longest: int = 100):
    return select_traces(rows, PROMPTS, think=(THINK, END), eos_ids=(EOS,), longest=longest)


def test_a_trace_is_prompt_and_completion_less_the_final_eos():
    (trace,), counts = select([row("a", GOOD)])
    assert trace == Trace("a", 0, (1, 30, THINK, 40, 41, END, 50), 3, 2, 5)
    assert trace.tokens[trace.thinking] == (40, 41)
    assert (counts.completions, counts.traces) == (1, 1)


def test_a_thought_may_begin_in_the_completion():
    (trace,), _ = select([row("c", [THINK, *GOOD])])
    assert trace.tokens[trace.thinking] == (40, 41)
    assert trace.prompt_length == 2


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        (row("a", GOOD, correct=False), "wrong"),
        (row("a", GOOD, correct=None), "wrong"),
        (row("a", [40, 41, 50, EOS]), "no_single_thought"),
        (row("a", [40, END, 41, END, 50, EOS]), "no_single_thought"),
        (row("a", [40, THINK, 41, END, 50, EOS]), "no_single_thought"),
        (row("c", GOOD), "no_single_thought"),
        (row("a", [40, 41, END, EOS]), "no_single_thought"),  # no answer, so no query
        (row("a", [END, 50, EOS]), "no_single_thought"),  # nothing was thought
        (row("a", GOOD[:-1], finish="length"), "no_single_thought"),
        (row("a", [40] * 100 + GOOD), "too_long"),
    ],
)
def test_what_is_no_trace_is_counted_by_its_reason(rows, why):
    traces, counts = select([rows, row("b", GOOD)])
    assert [trace.id for trace in traces] == ["b"]
    assert getattr(counts, why) == 1
    assert (counts.completions, counts.traces) == (2, 1)
    assert str(counts).startswith("1 traces of 2 completions (")


def test_order_is_that_of_problems_and_samples_whatever_finished_first():
    rows = [row("b", GOOD), row("a", GOOD, sample=1), row("a", GOOD)]
    traces, _ = select(rows)
    assert [(t.id, t.sample) for t in traces] == [("a", 0), ("a", 1), ("b", 0)]


@pytest.mark.parametrize("tokens", [[], [THINK], [END, THINK], [THINK, 1, END]])
def test_no_thought(tokens):
    assert thought(tokens, (THINK, END)) is None


def some(problems: int, samples: int) -> list[Trace]:
    return [Trace(f"p{i}", s, (1, THINK, 5, END, 6), 2, 1, 3) for i in range(problems) for s in range(samples)]


def test_the_split_is_by_problem_and_by_seed_alone():
    traces = some(20, 3)
    train, held_out = hold_out(traces, 0.1, seed=4)
    assert sorted(train + held_out) == list(range(60))
    assert len(held_out) == 6
    assert not {traces[i].id for i in train} & {traces[i].id for i in held_out}
    assert hold_out(traces, 0.1, seed=4) == (train, held_out)
    assert hold_out(traces, 0.1, seed=5) != (train, held_out)


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_neither_side_is_empty(fraction):
    assert all(hold_out(some(2, 1), fraction, seed=0))


def test_one_problem_is_too_few():
    with pytest.raises(UserError, match="1 problem with a correct trace: at least 2"):
        hold_out(some(1, 5), 0.1, seed=0)


class Words:
    def __init__(self, *words: str):
        self.words = words

    def get_vocab(self):
        return {word: i for i, word in enumerate(self.words)}


def test_models_without_a_thought_are_refused():
    assert think_tokens(Words("<think>", "</think>"), "m") == (0, 1)
    for tokenizer in (None, Words("</think>"), Words("<think>")):
        with pytest.raises(UserError, match="no thought to learn from"):
            think_tokens(tokenizer, "m")
