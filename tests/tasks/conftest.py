"""A grader for the tests of this folder, and the real data if there is any."""

import os
import pathlib

import pytest

from jkv.grading import Grader
from tests.command.conftest import run

__all__ = ["run"]


@pytest.fixture(scope="session")
def grader():
    with Grader() as grader:
        yield grader


@pytest.fixture(scope="session")
def real_data() -> pathlib.Path:
    """The folder with aime24.jsonl and math500.jsonl."""
    folder = os.environ.get("JKV_DATA")
    if not folder or not all((pathlib.Path(folder) / f"{name}.jsonl").is_file() for name in ("aime24", "math500")):
        pytest.skip("JKV_DATA names no folder with aime24.jsonl and math500.jsonl")
    return pathlib.Path(folder)
