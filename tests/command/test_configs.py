"""Every shipped YAML loads; every config field is read by some code."""

import ast
import dataclasses
import pathlib

import pytest

from jkv import decode, sweep, train_predictor
from jkv.config.bench import BenchConfig
from jkv.config.calibrate import CalibrateConfig
from jkv.config.decode import DecodeConfig
from jkv.config.probe import ProbeConfig
from jkv.config.sweep import SweepConfig
from jkv.config.train_predictor import TrainConfig

ROOT = pathlib.Path(__file__).parents[2]
# Which command reads a file is told by the first word of its name.
PARSERS = {
    "decode": decode.parse, "policies": sweep.parse, "sweep": sweep.parse, "dynts": sweep.parse,
    "predictor": train_predictor.parse,
}  # fmt: skip
SHIPPED = sorted((ROOT / "configs").glob("*.yaml"))


def test_there_are_some():
    assert ROOT / "configs" / "decode_demo.yaml" in SHIPPED


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_yaml_loads(path):
    parse = PARSERS[path.name.split("_")[0]]
    config = parse(["--config", str(path), "--out", "given"])
    assert "\nout:" not in path.read_text("utf-8"), "a shipped file doesn't decide where results go"
    if isinstance(config, TrainConfig):
        return
    runs = [cell.config for cell in config.cells()] if isinstance(config, SweepConfig) else [config]
    for run in runs:
        assert run.retention(run.make_policy(), longest=1000).retain >= 1


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
            if of == "config" or (of == "self" and path.parent.name == "config"):
                read.add(node.attr)
    for config in (DecodeConfig, ProbeConfig, CalibrateConfig, BenchConfig):
        assert {field.name for field in dataclasses.fields(config)} <= read
    # A sweep hands most of its fields on by name.
    handed_on = {field.name for field in dataclasses.fields(DecodeConfig)} | {"models", "tasks", "policies", "budgets"}
    assert {field.name for field in dataclasses.fields(SweepConfig)} <= handed_on | read
    # And so does the training of a predictor, to the decoding of its traces.
    assert {field.name for field in dataclasses.fields(TrainConfig)} <= handed_on | read
