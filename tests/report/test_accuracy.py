"""The accuracy part of summary.json."""

import pytest

from jkv.report.accuracy import accuracy


def row(id: str, sample: int, answer: str | None, correct: bool | None):
    return {"id": id, "sample": sample, "answer": answer, "correct": correct}


def test_of_two_problems():
    rows = [
        row("b", 1, "9", False), row("a", 0, "1", True), row("b", 0, "8", True), row("a", 1, " 1", True),
        row("b", 2, "9", False), row("a", 2, "2", False),
    ]  # fmt: skip
    found = accuracy(rows)
    assert found["pass_at_1"] == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert found["maj_at_k"] == 0.5
    # Of two drawn from three with one wrong, one is always right; with two wrong, both are wrong once in three.
    assert found["pass_at_k"] == {"1": pytest.approx(0.5), "2": pytest.approx((1 + 2 / 3) / 2), "3": 1.0}
    assert found["pass_at_1_low"] == pytest.approx(1 / 3)
    assert found["pass_at_1_high"] == pytest.approx(2 / 3)
    assert (found["maj_at_k_low"], found["maj_at_k_high"]) == (0.0, 1.0)


def test_ungraded_samples_are_left_out():
    rows = [row("a", 0, "1", True), row("a", 1, "1", None), row("b", 0, None, False), row("b", 1, "1", True)]
    found = accuracy(rows)
    assert found["pass_at_1"] == pytest.approx((1 + 0.5) / 2)
    assert list(found["pass_at_k"]) == ["1"]  # of a only one is graded


def test_nothing_is_graded():
    found = accuracy([row("a", 0, "1", None)])
    assert set(found) == set(accuracy([row("a", 0, "1", True)]))
    assert set(found.values()) == {None}
