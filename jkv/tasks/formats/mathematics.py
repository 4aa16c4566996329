"""A problem of mathematics whose answer is an expression, asked for as DeepSeek-R1's authors recommend."""

from collections.abc import Mapping
from typing import Any

GRADING = "math"
COLUMNS = ("problem", "answer")
# Usage recommendations of DeepSeek-R1 (2025): no system prompt, this directive in the user's message.
DIRECTIVE = r"Please reason step by step, and put your final answer within \boxed{}."


def question(fields: Mapping[str, Any]) -> tuple[str, str]:
    """The user's message and the reference answer."""
    return f"{fields['problem'].strip()}\n{DIRECTIVE}", fields["answer"]
