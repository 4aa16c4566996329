"""Tasks: where prompts come from, and how an answer is found in a completion and graded."""

from jkv.tasks.load import load_task
from jkv.tasks.problem import Problem

__all__ = ["Problem", "load_task"]
