"""Whether two answers are the same mathematics, by math-verify and some rules of our own.

math-verify parses LaTeX into sympy expressions by a grammar and compares them. It would pass text to Python's ``eval``
in two places; both are avoided: it isn't asked to parse plain text, and numbers are read by functions of this module.
The rules:

- Equal text is equal. An answer of words alone is compared as words, without font and case.
- A decimal is exactly the fraction it writes: 0.333333 is not 1/3, 3.14159265 is not pi.
- A percent sign on one side may be left out like a unit, or mean a hundredth: 50 % equals 50, and equals 0.5.
- The base of a number may be left out on one side: 52_8 equals 52 and equals 42, but not 52_9.
- (1, 2) is a point or an interval and does not equal the list 1, 2. Lists and sets have no order.
- i is the imaginary unit. Degrees within a sine are degrees.
- Digits with spaces between them, as in 4 2 1, are not a number.
- A text that is longer or more deeply nested than any real answer is wrong.

Any of these functions may take very long or much memory: call them only in the worker process (jkv.grading.worker).
"""

import logging
import re
from typing import Any

import sympy
from latex2sympy2_extended import latex2sympy2
from math_verify import LatexExtractionConfig, parse, verify

from jkv.grading.notation import is_text, list_kind, tidy, words

# Characters, and brackets nested in each other. The longest reference of MATH-500 has about 150 characters, the deepest
# has four nested braces.
LONGEST, DEEPEST = 4000, 60

_LATEX_ONLY = [LatexExtractionConfig(boxed_match_priority=0)]
_PERCENT = re.compile(r"\s*(?:\\?%|\\text\s*\{\s*\\?(?:%|percent)\s*\})$|\s+percent$")
_BASED = re.compile(r"(\d+)_(?:(\d)|\{(\d{1,2})\})")
_DIGITS_APART = re.compile(r"[-+\d.,\s]*\d\s+\d[-+\d.,\s]*")
_OPENING, _CLOSING = "([{", ")]}"


def equal(answer: str, reference: str) -> bool:
    """Whether ``answer`` is right if ``reference`` is. Raises MemoryError where memory doesn't suffice to find out."""
    if _squeeze(answer) == _squeeze(reference):
        return bool(answer.strip())
    if max(len(answer), len(reference)) > LONGEST or max(_depth(answer), _depth(reference)) > DEEPEST:
        return False
    answer_words, reference_words = words(answer), words(reference)
    if (is_text(answer) or is_text(reference)) and answer_words is not None and reference_words is not None:
        return answer_words == reference_words
    if is_text(reference) and reference_words is not None:
        return False
    answer, reference = tidy(answer), tidy(reference)
    if not answer or not reference or _DIGITS_APART.fullmatch(answer) or _DIGITS_APART.fullmatch(reference):
        return False
    if answer == reference:
        return True
    return any(_same(a, r) for a, r in _readings(answer, reference))


def _number(_: object, text: str) -> sympy.Expr:
    """Read a number of the grammar exactly. The parser's own function would pass it to ``eval``."""
    return sympy.Rational(text.replace(",", "").replace(" ", ""))


def _number_with_commas(text: str) -> sympy.Expr:
    """Read a number with commas between thousands; a comma after a leading zero is a decimal comma."""
    return _number(None, text.replace(",", ".") if text.startswith("0,") else text)


latex2sympy2._Latex2Sympy.parse_number = _number  # pyright: ignore[reportAttributeAccessIssue]
latex2sympy2.convert_number = _number_with_commas


def warm_up() -> None:
    """Build the parser, which the first comparison does, and turn logging off.

    math-verify would warn that its own time limit is off; the worker has one.
    """
    logging.disable(logging.CRITICAL)
    equal(r"\frac{1}{2}", "0.5")


def _readings(answer: str, reference: str) -> list[tuple[str, str]]:
    """Pairs of texts to compare: one pair, or two if a percent sign or base on only one side has two meanings."""
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
    lists = list_kind(answer), list_kind(reference)
    if all(lists) and "{" in lists and lists[0] != lists[1]:
        return False
    gold, guess = _parsed(reference), _parsed(answer)
    if any(_has_i(e) for e in (*gold, *guess)):
        gold, guess = [_with_i(e) for e in gold], [_with_i(e) for e in guess]
    return verify(gold, guess, allow_set_relation_comp=True, timeout_seconds=None)


def _parsed(text: str) -> list[Any]:
    # No time limit: math-verify's would use the same alarm as the worker's.
    return parse(rf"\boxed{{{text}}}", _LATEX_ONLY, parsing_timeout=None)  # pyright: ignore[reportArgumentType]


def _has_i(expression: Any) -> bool:
    return any(s.name == "i" for s in getattr(expression, "free_symbols", ()))


def _with_i(expression: Any) -> Any:
    """The expression with the symbol i replaced by the imaginary unit."""
    symbols = [s for s in getattr(expression, "free_symbols", ()) if s.name == "i"]
    return expression.xreplace(dict.fromkeys(symbols, sympy.I)) if symbols else expression


def _value(based: re.Match) -> str:
    """A number in base 2 to 36, converted to base 10; unchanged if the base is another or a digit is too large."""
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
