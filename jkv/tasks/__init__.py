"""Tasks: problems with their prompts as token ids and their reference answers. ``jkv.grading`` grades the answers."""

from jkv.tasks.load import load_task
from jkv.tasks.problem import Problem

__all__ = ["Problem", "load_task"]
