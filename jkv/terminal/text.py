"""Text of a model or a file, made fit to be shown."""

import unicodedata
from collections.abc import Sequence
from typing import Protocol, runtime_checkable


@runtime_checkable
class Detokenizer(Protocol):
    """The part of a transformers tokenizer that turns token ids into text."""

    def decode(self, ids: Sequence[int], /) -> str:
        """The text of these tokens."""
        ...


def visible(text: str) -> str:
    r"""Text that a terminal shows and doesn't obey: control and format characters become escapes such as \x1b. Newlines
    stay."""
    if text.isprintable():
        return text

    def one(char: str) -> str:
        """The character, or its escape."""
        harmless = char == "\n" or (unicodedata.category(char)[0] != "C" and char not in "\u2028\u2029")
        return char if harmless else char.encode("unicode_escape", "surrogatepass").decode("ascii")

    return "".join(map(one, text))


def short(text: str, limit: int = 40) -> str:
    """Text on one line, cut to ``limit`` characters; '...' marks the cut."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 3] + "..."


def pieces(tokenizer: Detokenizer | None, ids: Sequence[int]) -> list[str]:
    """The text of each token.

    Args:
        tokenizer: None for a model without one; a token's text is then its number.
        ids: the tokens.

    Returns:
        As many strings. Where several tokens are bytes of one character, the last has it and the others are empty.
    """
    if tokenizer is None:
        return [f"{i} " for i in ids]
    texts: list[str] = []
    before: list[int] = []  # decoded together with what follows, because a token alone loses a leading space
    group: list[int] = []
    for i in ids:
        group.append(i)
        prefix, whole = tokenizer.decode(before), tokenizer.decode(before + group)
        if whole.endswith("\ufffd") and len(group) < 4:  # a character has at most 4 bytes
            texts.append("")
            continue
        texts.append(whole[len(prefix) :] if whole.startswith(prefix) else tokenizer.decode(group))
        before, group = group, []
    if group:
        texts[-1] = tokenizer.decode(group)
    return texts


def squeeze(text: str) -> str:
    """Text with every run of white space as one space, and none at the ends."""
    return " ".join(text.split())
