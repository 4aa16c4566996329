"""The front door's names: every flag, its default, its help, YAML, and which of them wins."""

import dataclasses
import re

import pytest

from jkv import decode, policies
from jkv.config.bench import BenchConfig
from jkv.config.calibrate import CalibrateConfig
from jkv.config.command_line import GROUPS
from jkv.config.decode import DecodeConfig
from jkv.config.plan import PlanConfig
from jkv.config.probe import ProbeConfig
from jkv.config.sweep import SweepConfig
from jkv.config.train_predictor import TrainConfig
from jkv.config.view import ViewConfig
from jkv.errors import UserError
from jkv.files.shipped import MODELS
from jkv.terminal.flags import field_help

# The contract, spelled out a second time on purpose.
FLAGS = {
    "model": ("demo-llama", "demo-qwen"), "dtype": (None, "bfloat16"), "weights": (None, "int8"), "kv": (None, "int8"),
    "policy": ("dynts", "full"), "budget": (None, "64"), "window": (None, "8"), "ratio": (None, "0.3"),
    "retain": (None, "60"), "sinks": (None, "4"),
    "pin_prompt": (None, None), "granularity": ("shared", "head"), "options": (None, None),
    "register": (None, None), "predictor": (None, "x"), "long_prompts": ("refuse", "evict"),
    "task": ("demo", "x.jsonl"), "limit": (None, "3"),
    "samples": (1, "5"), "batch_size": (16, "2"), "max_new_tokens": (None, "9"),
    "temperature": (0.6, "0"), "top_p": (0.95, "0.5"), "top_k": (20, "0"), "seed": (0, "-7"),
    "ignore_eos": (False, None), "implementation": ("auto", "xla"),
    "mesh": (None, "data=1"), "out": (None, "runs/x"), "trace": (False, None),
    "quiet": (False, None),
}  # fmt: skip
MANY = ("options", "register")  # take more than one value, and have tests of their own


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def refusal(*arguments: str) -> str:
    with pytest.raises(UserError) as error:
        decode.parse(list(arguments))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_defaults_are_the_contract():
    config = decode.parse([])
    assert dataclasses.asdict(config) == {name: default for name, (default, _) in FLAGS.items()}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, (_, v) in FLAGS.items() if n not in MANY])
def test_every_flag_sets_its_field(name, value):
    if value is None:
        assert getattr(decode.parse([flag(name)]), name) is True
        assert getattr(decode.parse([flag(name).replace("--", "--no-", 1)]), name) is False
        return
    got = getattr(decode.parse([flag(name), value]), name)
    assert str(got) == value or got == float(value)
    assert getattr(decode.parse([f"{flag(name)}={value}"]), name) == got


def test_help_names_every_flag(capsys):
    with pytest.raises(SystemExit) as leaving:
        decode.parse(["--help"])
    assert leaving.value.code == 0
    text = capsys.readouterr().out
    for name in (*FLAGS, "config"):
        assert flag(name) in text
    assert "--no-pin-prompt" in text


CONFIGS = (
    DecodeConfig, SweepConfig, TrainConfig, PlanConfig, BenchConfig, ViewConfig, ProbeConfig, CalibrateConfig,
)  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.__name__)
def test_every_field_has_help_and_stands_in_one_section(config):
    texts = field_help(config, like=DecodeConfig)
    for field in dataclasses.fields(config):
        text = texts[field.name]
        assert len(text.split()) > 1, (field.name, text)
        assert not text.startswith(("of ", "whose ", "its ")), (field.name, text)
        assert sum(field.name in names for names in GROUPS.values()) <= 1, field.name
        # A default that is neither None nor False is added to the text, which then must not name another.
        added = field.default is not dataclasses.MISSING and field.default not in (None, False)
        assert text.count("(default") + added <= 1, (field.name, text)


def test_help_names_the_built_in_policies_and_the_shipped_models():
    built_in = [n for n in policies.policy_names() if policies.get_policy(n).__module__.startswith("jkv.policies.")]
    assert len(built_in) > 10
    names = field_help(DecodeConfig)["policy"].partition(": ")[2]
    assert names.split(", ") == built_in
    models = re.split(r",? or |, | ", field_help(PlanConfig, DecodeConfig)["model"].partition(": ")[2])
    shipped = {path.stem for path in MODELS.glob("*.json")}
    assert shipped
    assert {name for name in models if name.startswith("r1-")} == shipped
    for text in (field_help(DecodeConfig)["model"], field_help(PlanConfig, DecodeConfig)["model"]):
        assert "demo-llama, demo-qwen" in text


@pytest.mark.parametrize("order", [0, 1])
def test_flags_override_yaml_overrides_defaults(tmp_path, order):
    file = tmp_path / "run.yaml"
    file.write_text("budget: 64\nmax-new-tokens: 7\ntop_p: 1\ntrace: true\npin_prompt: false\n# a comment\n")
    arguments = [["--budget", "32", "--no-trace"], ["--config", str(file)]]
    config = decode.parse([*arguments[order], *arguments[1 - order]])
    assert (config.budget, config.trace) == (32, False)
    assert (config.max_new_tokens, config.top_p, config.pin_prompt) == (7, 1.0, False)
    assert config.seed == 0


def test_yaml_null_is_the_default_and_an_empty_file_sets_nothing(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("budget: null\ndtype:\n")
    assert decode.parse(["--config", str(file)]) == DecodeConfig()
    file.write_text("# nothing\n")
    assert decode.parse([f"--config={file}"]) == DecodeConfig()


BAD_YAML = {
    "list": ("- budget: 64", "holds [{'budget': 64}], not one 'name: value' a line"),
    "text": ("budget", "holds 'budget', not one 'name: value' a line"),
    "torn": ("budget: [64", "line 1, column 9 expected ',' or ']'"),
    "tab": ("budget:\n\t- 1", "line 2, column 1"),
    "unknown": ("budgett: 64", "unknown key 'budgett'; names are model, dtype"),
    "number key": ("1: 64", "unknown key '1'"),
    "list key": ("? [a]\n: 64", "unknown key \"['a']\""),
    "nested config": ("config: other.yaml", "unknown key 'config'"),
    "type": ("budget: many", ": budget: Input should be a valid integer, got 'many'"),
    "bool as integer": ("budget: true", ": budget: Input should be a valid integer, got True"),
    "float as integer": ("samples: 1.5", ": samples: Input should be a valid integer, got 1.5"),
    "integer as text": ("model: 7", ": model: Input should be a valid string, got 7"),
    "integer as bool": ("trace: 3", ": trace: Input should be a valid boolean, got 3"),
    "null": ("samples: null", ": samples: Input should be a valid integer, got None"),
    "nan": ("temperature: .nan", ": temperature: Input should be a finite number, got nan"),
    "choice": ("granularity: both", ": granularity: Input should be 'shared' or 'head', got 'both'"),
    "list value": ("budget: [64]", ": budget: Input should be a valid integer, got [64]"),
    "twice": ("budget: 1\nbudget: 2", "budget is set twice"),
    "twice, two spellings": ("top-k: 1\ntop_k: 2", "top_k is set twice"),
    "date": ("out: 2024-99-99", "can't be read (month must be in 1..12)"),
    "object": (
        "out: !!python/object/apply:os.getcwd []",
        "can't be read (could not determine a constructor for the tag",
    ),
    "deep": ("a: " + "[" * 2000, "can't be read ("),
    "bad tag": ("seed: !!int ''", "can't be read ("),
    "long": ("seed: [" + "1, " * 9999 + "]", ": seed: Input should be a valid integer, got [1, 1, 1, 1, 1, 1, ...]"),
}


@pytest.mark.parametrize("case", BAD_YAML.values(), ids=BAD_YAML.keys())
def test_bad_yaml_is_one_line_that_names_the_file(tmp_path, case):
    text, expected = case
    file = tmp_path / "run.yaml"
    file.write_text(text)
    message = refusal("--config", str(file))
    assert message.startswith(str(file))
    assert expected in message


def test_yaml_that_is_no_text_no_file_or_not_there(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_bytes(b"\xff\xfe")
    assert "'utf-8' codec can't decode byte 0xff in position 0" in refusal("--config", str(file))
    assert "Is a directory" in refusal("--config", str(tmp_path))
    assert "No such file" in refusal("--config", str(tmp_path / "absent.yaml"))


BAD_FLAGS = {
    "unknown flag": (["--budgett", "4"], "unrecognized arguments: --budgett 4"),
    "abbreviation": (["--budg", "4"], "unrecognized arguments: --budg 4"),
    "stray word": (["demo-llama"], "unrecognized arguments: demo-llama"),
    "no value": (["--budget"], "argument --budget: expected one argument"),
    "type": (
        ["--budget", "many"],
        "--budget: Input should be a valid integer, unable to parse string as an integer, got 'many'",
    ),
    "nan": (["--temperature", "nan"], "--temperature: Input should be a finite number, got 'nan'"),
    "choice": (["--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
    "implementation": (
        ["--implementation", "triton"],
        "argument --implementation: invalid choice: 'triton'",
    ),
    "ratio and retain": (["--ratio", "0.3", "--retain", "4"], "--retain: --ratio and --retain both say how much stays"),
    "ratio": (["--ratio", "1.5"], "--ratio: 1.5 is outside [0, 1)"),
    "top_p": (["--top-p", "0"], "--top-p: 0.0 is outside (0, 1]"),
    "budget 0": (["--budget", "0"], "--budget: 0 is below 1"),
    "huge": (["--max-new-tokens", "99999999999"], "--max-new-tokens: 99999999999 is above 16777216"),
    "empty": (["--out", ""], "--out: is empty"),
}


@pytest.mark.parametrize("case", BAD_FLAGS.values(), ids=BAD_FLAGS.keys())
def test_bad_flags(case):
    arguments, expected = case
    assert refusal(*arguments).startswith(expected)
