"""A mathematics problem whose answer is an expression, with the instruction that DeepSeek-R1's authors recommend."""

from collections.abc import Mapping
from typing import Any

GRADING = "math"
COLUMNS = ("problem", "answer")
# From "Usage Recommendations" in the model card https://huggingface.co/deepseek-ai/DeepSeek-R1: no system prompt, and
# for mathematics this directive in the user's message.
DIRECTIVE = r"Please reason step by step, and put your final answer within \boxed{}."


def question(fields: Mapping[str, Any]) -> tuple[str, str]:
    """The user's message and the reference answer. ``fields``: the texts ``problem`` and ``answer``."""
    return f"{fields['problem'].strip()}\n{DIRECTIVE}", fields["answer"]
