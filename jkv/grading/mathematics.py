"""Whether two answers are the same mathematics: math-verify, and where it differs from what mathematicians write.

math-verify turns LaTeX into sympy expressions by a grammar and compares them. Two ways in which it hands text to
Python's ``eval`` are closed: plain text isn't asked for, and numbers are read here. What else is decided here:

- Same text is the same. Words are compared as words, without font and case.
- A decimal is the fraction it writes, exactly: 0.333333 is not 1/3, 3.14159265 is not pi.
- A percent sign may be left out like a unit, or be taken as a hundredth: 50 % is 50, and is 0.5.
- So may the base of a number: 52_8 is 52 and is 42. It is not 52_9.
- (1, 2) is a point or an interval and is not the list 1, 2. Lists and sets have no order.
- i is the imaginary unit. Degrees within a sine are degrees.
- Digits apart, as in 4 2 1, are no number.
- What is longer or deeper than any answer is none.

Anything here may run long or take much memory: call it in a worker only (jkv.grading.worker).
"""

import logging
import re

import sympy
from latex2sympy2_extended import latex2sympy2
from math_verify import LatexExtractionConfig, parse, verify

from jkv.grading.notation import is_text, listing, tidy, words

# The longest answer of MATH-500 has about 150 characters, braces four deep.
LONGEST, DEEPEST = 4000, 60

_LATEX_ONLY = [LatexExtractionConfig(boxed_match_priority=0)]
_PERCENT = re.compile(r"\s*(?:\\?%|\\text\s*\{\s*\\?(?:%|percent)\s*\})$|\s+percent$")
_BASED = re.compile(r"(\d+)_(?:(\d)|\{(\d{1,2})\})")
_DIGITS_APART = re.compile(r"[-+\d.,\s]*\d\s+\d[-+\d.,\s]*")
_OPENING, _CLOSING = "([{", ")]}"


def equal(answer: str, reference: str) -> bool:
    """Whether ``answer`` is right if ``reference`` is. Raises MemoryError if that can't be found out in the memory."""
    if _squeeze(answer) == _squeeze(reference):
        return bool(answer.strip())
    if max(len(answer), len(reference)) > LONGEST or max(_depth(answer), _depth(reference)) > DEEPEST:
        return False
    said, meant = words(answer), words(reference)
    if (is_text(answer) or is_text(reference)) and said is not None and meant is not None:
        return said == meant
    if is_text(reference) and meant is not None:
        return False
    answer, reference = tidy(answer), tidy(reference)
    if not answer or not reference or _DIGITS_APART.fullmatch(answer) or _DIGITS_APART.fullmatch(reference):
        return False
    if answer == reference:
        return True
    return any(_same(a, r) for a, r in _readings(answer, reference))


def _number(_: object, text: str) -> sympy.Expr:
    """A number of the grammar, exactly; the parser's own way to read one is ``eval``."""
    return sympy.Rational(text.replace(",", "").replace(" ", ""))


def _number_with_commas(text: str) -> sympy.Expr:
    """A number with commas between thousands; after a zero it is a decimal comma."""
    return _number(None, text.replace(",", ".") if text.startswith("0,") else text)


latex2sympy2._Latex2Sympy.parse_number = _number  # pyright: ignore[reportAttributeAccessIssue]
latex2sympy2.convert_number = _number_with_commas


def warm_up() -> None:
    """Silence math-verify's warnings that its own time limit is off (the worker has one), and build the parser."""
    logging.disable(logging.CRITICAL)
    equal(r"\frac{1}{2}", "0.5")


def _readings(answer: str, reference: str) -> list[tuple[str, str]]:
    """Pairs to compare: as written, and what a percent sign or base on one side alone may mean."""
    percents = [_PERCENT.sub("", text) for text in (answer, reference)]
    if (percents[0] != answer) != (percents[1] != reference):
        hundredths = [rf"\frac{{{p}}}{{100}}" if p != text else text
                      for p, text in zip(percents, (answer, reference), strict=True)]  # fmt: skip
        return [(percents[0], percents[1]), (hundredths[0], hundredths[1])]
    answer, reference = percents
    based = [_BASED.fullmatch(text) for text in (answer, reference)]
    if any(based):
        values = [_value(found) if found else text for found, text in zip(based, (answer, reference), strict=True)]
        readings = [(values[0], values[1])]
        if not all(based):
            plain = [found[1] if found else text for found, text in zip(based, (answer, reference), strict=True)]
            readings.append((plain[0], plain[1]))
        return readings
    return [(answer, reference)]


def _same(answer: str, reference: str) -> bool:
    lists = listing(answer), listing(reference)
    if all(lists) and "{" in lists and lists[0] != lists[1]:
        return False
    gold, guess = _parsed(reference), _parsed(answer)
    if any(_has_i(e) for e in (*gold, *guess)):
        gold, guess = [_with_i(e) for e in gold], [_with_i(e) for e in guess]
    return verify(gold, guess, allow_set_relation_comp=True, timeout_seconds=None)


def _parsed(text: str) -> list:
    # None: no alarm of its own, which would take the worker's place.
    return parse(rf"\boxed{{{text}}}", _LATEX_ONLY, parsing_timeout=None)  # pyright: ignore[reportArgumentType]


def _has_i(expression) -> bool:
    return any(s.name == "i" for s in getattr(expression, "free_symbols", ()))


def _with_i(expression):
    symbols = [s for s in getattr(expression, "free_symbols", ()) if s.name == "i"]
    return expression.xreplace(dict.fromkeys(symbols, sympy.I)) if symbols else expression


def _value(based: re.Match) -> str:
    """A number in base 2 to 36, in base 10; as it is if it has a digit too large."""
    base = int(based[2] or based[3])
    if not 2 <= base <= 36 or any(int(digit) >= base for digit in based[1]):
        return based[0]
    return str(int(based[1], base))


def _squeeze(text: str) -> str:
    return " ".join(text.split())


def _depth(text: str) -> int:
    depth = deepest = 0
    for char in text:
        depth += (char in _OPENING) - (char in _CLOSING)
        deepest = max(deepest, depth)
    return deepest
