"""Text that a model or a file holds, made fit to be shown."""

import unicodedata
from collections.abc import Sequence
from typing import Any


def visible(text: str) -> str:
    r"""Text that a model or a file holds, safe for a terminal: control and format characters as \x1b, newlines stay."""
    if text.isprintable():
        return text

    def one(char: str) -> str:
        harmless = char == "\n" or (unicodedata.category(char)[0] != "C" and char not in "\u2028\u2029")
        return char if harmless else char.encode("unicode_escape", "surrogatepass").decode("ascii")

    return "".join(map(one, text))


def short(text: str, limit: int = 40) -> str:
    """On one line, and no longer than ``limit`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 3] + "..."


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Each token's text. Tokens that share a character (bytes of it) give all of it to the last of them."""
    if tokenizer is None:
        return [f"{i} " for i in ids]
    words: list[str] = []
    before: list[int] = []  # decoded with what follows, so that spaces between tokens are seen
    group: list[int] = []
    for i in ids:
        group.append(i)
        prefix, whole = tokenizer.decode(before), tokenizer.decode(before + group)
        if whole.endswith("\ufffd") and len(group) < 4:  # a character has at most 4 bytes
            words.append("")
            continue
        words.append(whole[len(prefix) :] if whole.startswith(prefix) else tokenizer.decode(group))
        before, group = group, []
    if group:
        words[-1] = tokenizer.decode(group)
    return words


def squeeze(text: str) -> str:
    """Runs of white space as one space, none at the ends."""
    return " ".join(text.split())
