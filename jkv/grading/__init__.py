"""Mathematical answers, compared in a process of their own: time and memory are limited, nothing is executed."""

from jkv.grading.client import Grader, Verdict

__all__ = ["Grader", "Verdict"]
