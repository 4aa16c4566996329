"""Find the answer in a completion, and compare it with the reference. Text is compared, never evaluated."""

import re

from jkv.terminal.text import squeeze

_OPENING, _END_OF_THOUGHT = "<think>", "</think>"
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*\{")
# A backslash escapes what follows it: the braces of \{1, 2\} are signs, not groups.
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_FONTS = re.compile(r"\\(?:text|math)[a-z]*\s*\{|[{}$*\s]+|\\[()\[\]]")
_CHOICE = re.compile(r"(?:option|choice|answer)?:?\(?([A-J])(?:[).:].*)?", re.IGNORECASE | re.DOTALL)
_SAID = re.compile(r"\banswer(?: is)?:?\s*\**\s*\(?([A-J])\b", re.IGNORECASE)


def opens_thought(text: str) -> bool:
    """Whether a thought is open at the end of ``text``, a prompt."""
    return text.rfind(_OPENING) > text.rfind(_END_OF_THOUGHT)


def extract_answer(text: str, *, thinking: bool = False) -> str | None:
    r"""The last \boxed{...} (\fbox, \framebox) of what follows </think>, or of everything if no thought was begun;
    without a box what follows </think>, stripped. None if there is neither, and for a thought that was never ended.

    A last box that is never closed is no box. thinking: whether the prompt has begun the thought.
    """
    _, mark, after = text.rpartition(_END_OF_THOUGHT)
    if not mark and (thinking or _OPENING in text):
        return None
    boxed = _last_boxed(after)
    if boxed is not None:
        return boxed
    return after.strip() if mark else None


def _last_boxed(text: str) -> str | None:
    start = None
    for box in _BOX.finditer(text):
        start = box.end()
    if start is None:
        return None
    depth = 1
    for brace in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[start : brace.start()].strip()
    return None


def extract_letter(answer: str | None) -> str | None:
    r"""The choice that an answer names: of a box that holds the letter, as in B, (b), \text{B} or B) 10 nm; of other
    text the last 'answer is (B)' or 'Answer: B'. None if it names none.
    """
    if answer is None:
        return None
    found = _CHOICE.fullmatch(_FONTS.sub("", answer))
    if found:
        return found[1].upper()
    said = _SAID.findall(answer)
    return said[-1].upper() if said else None


def is_correct(answer: str | None, reference: str | None) -> bool | None:
    """Exact match up to white space; None if there is no reference."""
    if reference is None:
        return None
    return answer is not None and squeeze(answer) == squeeze(reference)
