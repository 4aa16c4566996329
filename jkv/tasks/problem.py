"""One problem as the engine and the grader need it."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Problem:
    """A prompt in token ids, as it enters the model, and the reference answer if there is one.

    where: the file and line it came from, for error messages.
    """

    id: str
    prompt_ids: tuple[int, ...]
    answer: str | None
    where: str = ""
