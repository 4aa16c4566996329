"""A question with one right choice among several; the answer is the letter of the choice.

The choices are ordered by a SHA-256 hash of a fixed seed, the choice's number and the question's text. So the order is
the same in every run, on every machine and in every version of Python, and doesn't depend on the other questions.
"""

import hashlib
import string
from collections.abc import Mapping
from typing import Any

GRADING = "letter"
COLUMNS = ("problem", "answer", "wrong")
SEED = 0
DIRECTIVE = r"Please reason step by step, and put the letter of your final answer within \boxed{}."


def question(fields: Mapping[str, Any]) -> tuple[str, str]:
    """The user's message and the letter of the right choice.

    ``fields``: the texts ``problem`` and ``answer`` (the right choice), and ``wrong``, the list of the other choices.
    """
    problem = fields["problem"].strip()
    choices = [choice.strip() for choice in (fields["answer"], *fields["wrong"])]
    order = sorted(range(len(choices)), key=lambda i: _rank(problem, i))
    lines = [f"{letter}) {choices[i]}" for letter, i in zip(string.ascii_uppercase, order, strict=False)]
    return "\n".join([problem, "", *lines, "", DIRECTIVE]), string.ascii_uppercase[order.index(0)]


def _rank(problem: str, choice: int) -> bytes:
    return hashlib.sha256(f"{SEED}/{choice}/{problem}".encode("utf-8", "surrogatepass")).digest()
