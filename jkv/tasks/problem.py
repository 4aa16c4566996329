"""A problem: what the engine decodes and the grader grades."""

import dataclasses
from typing import Literal, get_args

Grading = Literal["exact", "math", "letter"]
GRADINGS = get_args(Grading)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A prompt and its reference answer.

    Attributes:
        id: unique within its task.
        prompt_ids: token ids, as they enter the model.
        answer: the reference answer; None if there is none, then nothing is graded.
        where: the file and line it came from, for error messages.
        grading: how an answer is compared: exact is the same text up to white space, math the same mathematics, letter
            the letter of the right choice.
    """

    id: str
    prompt_ids: tuple[int, ...]
    answer: str | None
    where: str = ""
    grading: Grading = "exact"
