"""Every shipped YAML loads; every config field is read by some code."""

import ast
import dataclasses
import pathlib

import pytest

from jkv import decode
from jkv.run_config import DecodeConfig

ROOT = pathlib.Path(__file__).parents[2]
# Which command reads a file is told by the first word of its name.
PARSERS = {"decode": decode.parse}
SHIPPED = sorted(path for path in (ROOT / "configs").glob("*.yaml") if path.name.split("_")[0] in PARSERS)


def test_there_are_some():
    assert ROOT / "configs" / "decode_demo.yaml" in SHIPPED


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_yaml_loads(path):
    config = PARSERS[path.name.split("_")[0]](["--config", str(path)])
    assert config.retention(config.make_policy(), longest=1000).retain >= 1
    assert config.out is None, "a shipped file doesn't decide where results go"


def test_the_demo_config_says_what_the_defaults_are():
    """A file that documents defaults must not drift from them."""
    config = decode.parse(["--config", str(ROOT / "configs" / "decode_demo.yaml")])
    plain = DecodeConfig()
    rules = [c.retention(c.make_policy(), longest=1000) for c in (config, plain)]
    assert rules[0] == rules[1]
    for name in ("model", "task", "temperature", "top_p", "top_k", "seed", "batch_size", "policy"):
        assert getattr(config, name) == getattr(plain, name)


def test_every_field_is_read_by_some_code():
    read = set()
    for path in (ROOT / "jkv").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Attribute) or not isinstance(node.ctx, ast.Load):
                continue
            of = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
            if of == "config" or (of == "self" and path.name == "run_config.py"):
                read.add(node.attr)
    assert {field.name for field in dataclasses.fields(DecodeConfig)} <= read
