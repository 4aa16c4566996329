"""Grading of mathematics: a table of pairs by hand, and answers that are malformed in many ways."""

import collections
import pathlib

import pytest

from jkv.grading.notation import is_text, list_kind, tidy, unfenced, words

TABLE = pathlib.Path(__file__).parent / "answer_pairs.tsv"


def pairs():
    for number, line in enumerate(TABLE.read_text("utf-8").splitlines(), 1):
        if line and not line.startswith("#"):
            sign, reference, answer = line.split("\t")
            assert sign in ("=", "!", ">"), number
            yield number, sign, reference, answer


def test_the_table_is_large_and_has_both_kinds():
    kinds = collections.Counter(sign for _, sign, _, _ in pairs())
    assert kinds.total() >= 200
    assert kinds["="] >= 80
    assert kinds["!"] >= 80
    assert len({tuple(row[1:]) for row in pairs()}) == kinds.total()


def test_every_pair_of_the_table(grader):
    wrong = []
    for number, sign, reference, answer in pairs():
        verdicts = [grader.grade(answer, reference)]
        if sign != ">":
            verdicts.append(grader.grade(reference, answer))
        if any(verdict.correct is not (sign != "!") for verdict in verdicts):
            wrong.append(f"{TABLE.name}:{number}: {sign} {reference} | {answer}: {verdicts}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$42$.", "42"), (r"\(x\)", "x"), (r"\[ x \]", "x"), ("$$x$$", "x"), ("$1$ and $2$", "$1$ and $2$"),
        (r"\left\{ 1 \right.", r"\left\{ 1 \right."), ("", ""), ("...", ""),
    ],
)  # fmt: skip
def test_fences_and_full_stops_come_off(text, expected):
    assert unfenced(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\textbf{(073) }", "73"), ("1{,}234", "1234"), ("1,234", "1234"), (r"1\,234.5", "1234.5"), ("0.05", "0.05"),
        ("1,2345", "1,2345"), ("3, 125, 7", "3, 125, 7"), ("(1,234)", "(1,234)"), ("007", "7"), ("100", "100"),
        (r"0.1\overline{6}", r"\frac{15}{90}"), (r"\text{Evelyn}", r"\text{Evelyn}"), ("1 1/2", r"1\frac{1}{2}"),
        (r"\sin 30^\circ", r"\sin(\frac{30\pi}{180})"), (r"\dfrac{1}{2}", r"\frac{1}{2}"), ("x_{00}", "x_{0}"),
    ],
)  # fmt: skip
def test_notation_is_tidied(text, expected):
    assert tidy(text) == expected


def test_words():
    assert words(r"\text{No solution.}") == words("no  solution") == "no solution"
    assert words("(B)") == "b"
    assert words(r"x^2") is words("42") is words("") is None
    assert is_text(r"\text{a}")
    assert is_text(r"$\mathrm{a b}$.")
    assert not is_text(r"\text{a} b")
    assert not is_text(r"\texttt{a}")


def test_listings():
    kinds = {"(1,2)": "(", "1,2": "{", r"\{1,2\}": "{", r"\left\{1,2\right\}": "{", "[1,2)": "[", "f(1,2)": "",
             "(1,2),(3,4)": "{", "(1)": "", "5": "", "": "", "(1,2)+(3,4)": "", ")(,": "{"}  # fmt: skip
    assert {text: list_kind(text) for text in kinds} == kinds
