"""Bring different notations of the same answer into one form, before it is parsed as mathematics."""

import re

_FENCES = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
_FONT = re.compile(r"\\(?:text(?:bf|it|rm|sf|normal)?|math(?:bf|it|rm|sf)|mbox|rm|bf)(?![A-Za-z])\s*")
_SPACED = re.compile(r"\\(?:displaystyle|textstyle|limits|quad|qquad)(?![A-Za-z])|\\[;:]|~")
_BRACKETS = re.compile(r"\\(?:left|right|[bB]igg?[lr]?)(?![A-Za-z])\s*")
# Separators between groups of three digits.
_THOUSANDS = re.compile(r"(?<=\d)(?:\{,\}|,\\!|\\,|\\!|\\ |,| )(?=\d{3}(?!\d))")
_THOUSANDS_ONLY = re.compile(r"[-+]?(?:\\\$)?\s*\d{1,3}(?:(?:\{,\}|,\\!|\\,|\\!|\\ |,| )\d{3})+(?:\.\d+)?(?!\d)")
_THIN = re.compile(r"(?<=\d)(?:\{,\}|,\\!|\\,|\\!)(?=\d{3}(?!\d))")
_LEADING_ZEROS = re.compile(r"(?<![\d.,}])0+(?=\d)")
_REPEATING = re.compile(r"(\d*)\.(\d*)\\overline\s*\{(\d+)\}")
_MIXED = re.compile(r"(?<!\d)(\d+)\s+(\d+)/(\d+)(?!\d)")
_DEGREES = r"(-?\d+(?:\.\d+)?)\s*\^\s*(?:\\circ|\{\s*\\circ\s*\})"
_TRIGONOMETRY = re.compile(r"(\\(?:sin|cos|tan|cot|sec|csc))\s*[({]?\s*" + _DEGREES + r"\s*[)}]?")
_WORDS = re.compile(r"[^\W\d_][^\W\d_ '-]*(?:[ '-]+[^\W\d_]+)*")
_WORD_MARK = re.compile(r"\((.)\)")
_SYNONYMS = {
    r"\varnothing": r"\emptyset", r"\langle": "(", r"\rangle": ")", r"\dfrac": r"\frac", r"\tfrac": r"\frac",
    r"\lbrace": r"\{", r"\rbrace": r"\}", r"\leqslant": r"\le", r"\geqslant": r"\ge", "\N{MINUS SIGN}": "-",
    "×": r"\times ", "π": r"\pi ", "∞": r"\infty ", "√": r"\sqrt", "°": r"^\circ", "≤": r"\le ",
    "≥": r"\ge ", "∪": r"\cup ", "∅": r"\emptyset ",
}  # fmt: skip
_SYNONYM = re.compile("|".join(re.escape(key) + ("(?![A-Za-z])" if key[0] == "\\" else "") for key in _SYNONYMS))


def tidy(text: str) -> str:
    """Normalize LaTeX.

    Removes dollar signs around it, fonts around numbers, separators between thousands, leading zeros and a full stop at
    the end; writes repeating decimals, mixed numbers and degrees in trigonometric functions as fractions.
    """
    text = unfenced(text)
    text = _SYNONYM.sub(lambda found: _SYNONYMS[found[0]], text)
    text = _SPACED.sub(" ", text)
    text = _unwrapped(text)
    if _THOUSANDS_ONLY.fullmatch(text):
        text = _THOUSANDS.sub("", text)
    text = _THIN.sub("", text)
    text = _LEADING_ZEROS.sub("", text)
    text = _REPEATING.sub(_as_fraction, text)
    text = _MIXED.sub(r"\1\\frac{\2}{\3}", text)
    return _TRIGONOMETRY.sub(r"\1(\\frac{\2\\pi}{180})", text).strip()


def unfenced(text: str) -> str:
    r"""The text without dollar signs, \(...\) or \[...\] around it, and without punctuation at its end."""
    before = None
    while text != before:
        before, text = text, text.strip()
        for opening, closing in _FENCES:
            inner = text[len(opening) : -len(closing)]
            if text.startswith(opening) and text.endswith(closing) and opening not in inner and closing not in inner:
                text = inner
                break
        if text.endswith((".", ",", ";")) and not text.endswith((r"\right.", r"\,", r"\;")):
            text = text[:-1]
    return text


def words(text: str) -> str | None:
    """The words of an answer that consists only of words, without font and in lower case; None for another answer."""
    text = _FONT.sub("", unfenced(text)).replace("{", "").replace("}", "").replace("\\ ", " ")
    text = " ".join(text.split()).rstrip(".,;! ")
    marked = _WORD_MARK.fullmatch(text)
    text = marked[1] if marked else text
    return text.casefold() if _WORDS.fullmatch(text) else None


def is_text(text: str) -> bool:
    r"""Whether the whole text is in one \text{...} or another font command."""
    text = unfenced(text)
    font = _FONT.match(text)
    return font is not None and _group_end(text, font.end()) == len(text) - 1


def list_kind(text: str) -> str:
    """The kind of list: its opening bracket '(' or '[', '{' for braces or no bracket; '' if it is no list."""
    text = _BRACKETS.sub("", text).strip()
    opening = "{" if text.startswith((r"\{", "{")) else text[:1]
    depth, commas_at = 0, set()
    opened_to_the_end = True
    for at, char in enumerate(text):
        if char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
            if depth == 0 and at < len(text) - 1:
                opened_to_the_end = False
        elif char == ",":
            commas_at.add(depth)
    if 0 in commas_at:
        return "{"
    return opening if opening and opening in "([{" and opened_to_the_end and 1 in commas_at else ""


def _unwrapped(text: str) -> str:
    r"""The text without a font around a number: \textbf{(113) } becomes 113.

    Words keep their font, which marks them as words.
    """
    font = _FONT.match(text)
    if font and _group_end(text, font.end()) == len(text) - 1:
        inner = text[font.end() + 1 : -1].strip()
        if inner and not any(char.isalpha() for char in inner):
            numbered = re.fullmatch(r"\(([-+\d.,]+)\)", inner)
            return numbered[1] if numbered and "," not in inner else inner
    return text


def _group_end(text: str, start: int) -> int:
    """The index of the brace that closes the one at ``start``; -1 if there is no brace or it is never closed."""
    if text[start : start + 1] != "{":
        return -1
    depth = 0
    for at in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return at
    return -1


def _as_fraction(found: re.Match) -> str:
    """A repeating decimal as a fraction: 0.1(6) is (16 - 1) / 90. Longer than 60 characters, it stays as it is."""
    whole, fixed, repeated = found.groups()
    if len(found[0]) > 60:
        return found[0]
    numerator = int((whole or "0") + fixed + repeated) - int((whole or "0") + fixed)
    return rf"\frac{{{numerator}}}{{{'9' * len(repeated)}{'0' * len(fixed)}}}"
