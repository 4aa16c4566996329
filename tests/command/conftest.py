"""Tiny checkpoints for the command, and a way to run it in this process."""

import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest

from jkv import decode
from jkv.demo import tokenizer
from jkv.terminal import command as cli
from tests.support.compilation import quick_compilation as quick_compilation
from tests.support.tiny import FAMILY, prompts


class Result(NamedTuple):
    """What a shell would see."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> pathlib.Path:
    """A model without a tokenizer: L = 2, K = 2, H = 12, vocabulary 97, eos 2."""
    directory = tmp_path_factory.mktemp("tiny")
    FAMILY[0].save(directory)
    return directory


@pytest.fixture(scope="session")
def wordy(tmp_path_factory) -> pathlib.Path:
    """The same with the demo's tokenizer, whose vocabulary is smaller than the model's."""
    directory = tmp_path_factory.mktemp("wordy")
    FAMILY[0].save(directory)
    tokenizer.save(directory, 512)
    assert len(tokenizer.vocabulary()) < 97
    return directory


def write_rows(path: pathlib.Path, rows: Sequence[Any]) -> pathlib.Path:
    """A JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture(scope="session")
def task(tmp_path_factory) -> pathlib.Path:
    """Three prompts of token ids, without answers."""
    rows = [{"id": f"p{i}", "prompt_ids": ids} for i, ids in enumerate(prompts(5, 9, 20))]
    return write_rows(tmp_path_factory.mktemp("task") / "task.jsonl", rows)


@pytest.fixture
def run(capfd) -> Callable[..., Result]:
    """Run ``python -m jkv.decode`` with these arguments, as the shell would but in this process."""

    def command(*arguments: Any) -> Result:
        capfd.readouterr()
        with pytest.raises(SystemExit) as leaving:
            cli.run(decode.main, [str(a) for a in arguments])
        code = leaving.value.code
        return Result(code if isinstance(code, int) else 0, *capfd.readouterr())

    return command


def read_jsonl(path: pathlib.Path) -> list[dict[str, Any]]:
    """All lines of a JSONL file."""
    return [json.loads(line) for line in path.read_bytes().splitlines()]
