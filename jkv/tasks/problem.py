"""One problem as the engine and the grader need it."""

import dataclasses
from typing import Literal, get_args

Grading = Literal["exact", "math", "letter"]
GRADINGS = get_args(Grading)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A prompt in token ids, as it enters the model, and the reference answer if there is one.

    where: the file and line it came from, for error messages.
    grading: exact is the same text up to white space, math the same mathematics, letter the choice of that letter.
    """

    id: str
    prompt_ids: tuple[int, ...]
    answer: str | None
    where: str = ""
    grading: Grading = "exact"
