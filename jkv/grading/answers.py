"""Find the answer in a completion, and compare it with the reference as text. No text is ever evaluated."""

import re

from jkv.terminal.text import squeeze

_OPENING, _END_OF_THOUGHT = "<think>", "</think>"
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*\{")
# A backslash escapes the next character: the braces of \{1, 2\} are printed and don't group.
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_FONTS = re.compile(r"\\(?:text|math)[a-z]*\s*\{|[{}$*\s]+|\\[()\[\]]")
_CHOICE = re.compile(r"(?:option|choice|answer)?:?\(?([A-J])(?:[).:].*)?", re.IGNORECASE | re.DOTALL)
_ANSWER_IS = re.compile(r"\banswer(?: is)?:?\s*\**\s*\(?([A-J])\b", re.IGNORECASE)


def opens_thought(text: str) -> bool:
    """Whether ``text``, a prompt, ends within a thought: its last <think> comes after its last </think>."""
    return text.rfind(_OPENING) > text.rfind(_END_OF_THOUGHT)


def extract_answer(text: str, *, thinking: bool = False) -> str | None:
    r"""Find the answer in a completion.

    It is the content of the last \boxed{...} (or \fbox, \framebox) after the last </think>, or of the whole text if
    there was no thought. Without a box, or if the last one is never closed, it is all the text after </think>.

    Args:
        text: the completion.
        thinking: whether the prompt already contains the <think> that the completion has to end.

    Returns:
        The answer, stripped. None if the thought never ended, or if there is neither a thought nor a box.
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
    r"""The letter of the choice that an answer names, upper case; None if it names none.

    That is the letter that the whole answer consists of or begins with (B, (b), \text{B}, B) 10 nm), or else the last
    one in a phrase like 'answer is (B)' or 'Answer: B'.
    """
    if answer is None:
        return None
    found = _CHOICE.fullmatch(_FONTS.sub("", answer))
    if found:
        return found[1].upper()
    letters = _ANSWER_IS.findall(answer)
    return letters[-1].upper() if letters else None


def is_correct(answer: str | None, reference: str | None) -> bool | None:
    """Whether both are the same text up to white space; None if there is no reference. No answer is wrong."""
    if reference is None:
        return None
    return answer is not None and squeeze(answer) == squeeze(reference)
