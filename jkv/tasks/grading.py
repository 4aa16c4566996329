"""Find the answer in a completion, and compare it with the reference. Text is compared, never evaluated."""

import re

_END_OF_THOUGHT = "</think>"
# A backslash escapes what follows it: the braces of \{1, 2\} are signs, not groups.
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)


def extract_answer(text: str) -> str | None:
    """The last \\boxed{...} of what follows </think> (of everything if there is no </think>), else what follows
    </think>, stripped. None if there is neither. A last box that is never closed is no box.
    """
    _, mark, after = text.rpartition(_END_OF_THOUGHT)
    boxed = _last_boxed(after)
    if boxed is not None:
        return boxed
    return after.strip() if mark else None


def _last_boxed(text: str) -> str | None:
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    opening = start + len("\\boxed")
    for brace in _BRACE.finditer(text, opening):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[opening + 1 : brace.start()].strip()
    return None


def is_correct(answer: str | None, reference: str | None) -> bool | None:
    """Exact match up to white space; None if there is no reference."""
    if reference is None:
        return None
    return answer is not None and squeeze(answer) == squeeze(reference)


def squeeze(text: str) -> str:
    """Runs of white space as one space, none at the ends."""
    return " ".join(text.split())
