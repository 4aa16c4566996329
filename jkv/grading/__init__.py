"""Grading: find the answer in a completion and compare it with the reference.

Mathematics is compared in a worker process, whose time and memory are limited and which executes no text of an answer.
"""

from jkv.grading.client import Grader, Verdict

__all__ = ["Grader", "Verdict"]
