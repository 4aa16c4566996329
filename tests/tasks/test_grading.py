"""Answers: found in a completion, compared as text."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jkv.grading.answers import extract_answer, extract_letter, is_correct, opens_thought

FOUND = {
    "box": (r"<think>no</think> so \boxed{42}.", "42"),
    "text after the thought": ("<think>no</think>  b 6 c 3 \n", "b 6 c 3"),
    "nothing after it": ("<think>no</think>", ""),
    "last box": (r"</think>\boxed{1} and \boxed{2}", "2"),
    "box in the thought only": (r"\boxed{1}</think> 2", "2"),
    "no end of thought, box": (r"so \boxed{ 1 }", "1"),
    "no end of thought, no box": ("so 1", None),
    "empty text": ("", None),
    "two ends": (r"a</think>\boxed{1}</think>\boxed{2}", "2"),
    "nested braces": (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
    "escaped braces": (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    "one escaped brace": (r"\boxed{\left\{ 1 \right.} }", r"\left\{ 1 \right."),
    "escaped backslash": (r"\boxed{a \\} b}", "a \\\\"),
    "box in a box": (r"\boxed{1 \boxed{2} 3}", "2"),
    "never closed": (r"\boxed{1", None),
    "never closed after the thought": (r"</think>\boxed{1", r"\boxed{1"),
    "closed too often": (r"\boxed{1}}}", "1"),
    "empty box": (r"\boxed{}", ""),
    "ends with the opening": (r"</think> 3 \boxed", r"3 \boxed"),
    "lone backslash": ("\\boxed{1\\", None),
    "white space": ("</think>\\boxed{\n 1\t}", "1"),
    "framed": (r"$\framebox{204}$ minutes", "204"),
    "the last of both": (r"\boxed{1} \fbox{2}", "2"),
    "space before the brace": (r"\boxed {5}", "5"),
    "another command": (r"\boxedtext{5}</think> 4", "4"),
    "in mathematics": (r"$$x = \boxed{\dfrac{1}{2}}.$$", r"\dfrac{1}{2}"),
    "matrix": (r"\boxed{\begin{pmatrix} 1 \\ 2 \end{pmatrix}}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    "thought that was never ended": (r"<think> maybe \boxed{1}", None),
    "second thought that was never ended": (r"<think>a</think> \boxed{1} <think> \boxed{2}", "2"),
}


@pytest.mark.parametrize("case", FOUND.values(), ids=FOUND.keys())
def test_extract_answer(case):
    text, expected = case
    assert extract_answer(text) == expected


def test_a_thought_that_the_prompt_began_has_to_end():
    assert extract_answer(r"so \boxed{1}", thinking=True) is None
    assert extract_answer(r"so \boxed{1}</think> it is \boxed{2}", thinking=True) == "2"
    assert opens_thought("<|User|>1+1?<|Assistant|><think>\n")
    assert not opens_thought("<|User|>1+1?<|Assistant|>")
    assert not opens_thought("<think>\n\n</think>\n\n")
    assert opens_thought("<think>a</think> and now <think>")


LETTERS = {
    "B": "B", "b": "B", "(B)": "B", "(b)": "B", "B.": "B", r"\text{B}": "B", r"\textbf{(C)}": "C", r"\mathrm{D}": "D",
    "$A$": "A", "B) 10 nm": "B", "(B) 10 nm": "B", "B: 10 nm": "B", "Option B": "B", "choice (C)": "C", "**D**": "D",
    "The answer is (B).": "B", "So the answer is **C**": "C", "Answer: D": "D", "answer is A, no, the answer is B": "B",
    "10 nm": None, "": None, "Because of this": None, "AB": None, "A or B": None, "K": None, "42": None,
    r"\boxed{": None, "A is wrong": None,
}  # fmt: skip


@pytest.mark.parametrize(("answer", "letter"), LETTERS.items())
def test_extract_letter(answer, letter):
    assert extract_letter(answer) == letter
    assert extract_letter(None) is None


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{" + "{" * 10**6, "\\boxed{" * 150_000, "\\boxed{" + "{}" * 500_000 + "}", "</think>" * 130_000,
        "\\" * 10**6, "\\boxed{" + "\\{" * 500_000, " " * 10**6 + "</think>" + "\n" * 10**6, "{" * 10**6 + "}" * 10**6,
    ],
    ids=range(8),
)  # fmt: skip
def test_a_megabyte_takes_no_time(text):
    started = time.process_time()
    is_correct(extract_answer(text), text)
    extract_letter(text)
    opens_thought(text)
    assert time.process_time() - started < 2


@given(st.text("abc{}\\ \n") | st.text())
def test_any_text_is_answered(text):
    answer = extract_answer(text)
    assert answer is None or answer == answer.strip()
    if answer is not None:
        assert answer in text


@given(st.recursive(st.text("xy 1"), lambda inner: inner.map("{{{}}}".format) | st.tuples(inner, inner).map("".join)))
def test_a_balanced_box_comes_back(inner):
    assert extract_answer(f"\\boxed{{1}} </think> \\boxed{{{inner}}} }} {{") == inner.strip()


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("1", "1", True), (" 1\n 2 ", "1 2", True), ("12", "1 2", False), ("1.0", "1", False), (None, "1", False),
        (None, None, None), ("1", None, None), ("", "", True), ("__import__('os')", "1", False),
        ("1\u00a02", "1 2", True),
    ],
)  # fmt: skip
def test_is_correct(answer, reference, expected):
    assert is_correct(answer, reference) is expected
