"""A policy of one's own, in few lines, used by the command and by an Engine; and what can go wrong."""

import dataclasses
import json
import pathlib
import re
import shutil
from collections import Counter

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from jkv.engine.engine import Engine
from jkv.engine.events import Request
from jkv.errors import UserError
from jkv.load import load
from jkv.models import Decoder
from jkv.models.config import ModelConfig
from jkv.models.predictor import random_predictor, save_predictor
from jkv.policies import Policy, Retention, get_policy
from jkv.policies.options import run_policy_file
from tests.command.conftest import read_jsonl
from tests.policies.zoo import gates, query_statistics
from tests.support.tiny import complete, prompts

FILE = pathlib.Path(__file__).with_name("echo_policy.py")


def echoes_kept(tokens: list[int], prompt: int, budget: int, retain: int, window: int) -> list[list[int]]:
    """What the echo policy keeps at each eviction, by the definition: lists, and counting."""
    held, echoes, kept = [], Counter(), []
    for position, token in enumerate(tokens[:-1]):  # the last token of a completion never enters the buffer
        if len(held) == budget:
            safe = lambda p, newest=position - 1: p > newest - window
            held = sorted(sorted(held, key=lambda p: (safe(p), 1000 * echoes[p] + p))[budget - retain :])
            kept.append(held)
        for p in held:
            echoes[p] += tokens[p] == token
        held = [*held, position]
    assert prompt <= budget
    return kept


def test_at_most_forty_lines():
    assert len(FILE.read_text("utf-8").splitlines()) <= 40


@pytest.mark.parametrize("retain", [24, 31])
def test_by_an_engine(retain):
    run_policy_file(str(FILE))
    # Few tokens in the vocabulary, so that they come up again.
    config = ModelConfig("llama", 11, 40, 72, 2, 4, 2, 12, 1e4)
    engine = Engine(
        Decoder(config, rngs=nnx.Rngs(0)), policy=get_policy("echo")(), rule=Retention(32, retain, 3), batch_size=2,
        eos_ids=(),
    )  # fmt: skip
    todo = [Request(f"r{i}", p, 60) for i, p in enumerate(prompts(5, 20, 9, vocabulary=11))]
    done, evictions = complete(engine, todo, trace=True)
    for request in todo:
        tokens = [*request.prompt_ids, *done[request.id].token_ids]
        expected = echoes_kept(tokens, len(request.prompt_ids), 32, retain, 3)
        assert [event.kept for event in evictions[request.id]] == expected
        assert len(expected) == done[request.id].evictions > 3


def test_by_the_command(run, tmp_path):
    out = tmp_path / "out"
    result = run(
        "--register", FILE, "--policy", "echo", "--options", "weight=5", "--budget", 64, "--limit", 2,
        "--max-new-tokens", 60, "--ignore-eos", "--temperature", 0, "--trace", "--out", out,
    )  # fmt: skip
    assert result.code == 0, result.err
    assert "echo" in result.out
    summary = json.loads((out / "summary.json").read_text("utf-8"))
    assert (summary["policy"], summary["options"], summary["samples"]) == ("echo", {"weight": 5.0}, 2)
    assert summary["evictions"] > 0
    assert {len(row["kept"]) for row in read_jsonl(out / "trace.jsonl")} == {56}


@pytest.fixture
def refused(run, tiny, task):
    """Run the tiny model; assert a refusal in one line, and return it."""

    def command(*arguments, model=tiny) -> str:
        result = run("--model", model, "--task", task, "--budget", 32, "--max-new-tokens", 8, *arguments)
        assert result.code == 2, result
        assert result.out == ""
        (line,) = result.err.splitlines()
        return line.removeprefix("error: ")

    return command


# Where an error is, counts in the user's own file, whoever raises it.
BROKEN = {
    "syntax": (b"import jax\n\ndef broken(:\n    pass\n", ", line 3: raises SyntaxError: "),
    "unterminated": (b"x = 1\n'''", ", line 2: raises SyntaxError: "),
    "not UTF-8": (b"x = 1\ny = '\xff'\n", "(, line 2)?: raises SyntaxError: "),
    "null byte": (b"x = 1\0\n", "(, line 1)?: raises SyntaxError: "),
    "raises": (b"import jax\n\ny = 1 / 0\n", ", line 3: raises ZeroDivisionError: division by zero; mend the file$"),
    "raises in what it calls": (b"import json\n\njson.loads('{')\n", ", line 3: raises JSONDecodeError: "),
    "imports what is not there": (b"import nothing_of_that_name\n", ", line 1: raises ModuleNotFoundError: "),
    "exits": (b"x = 1\nraise SystemExit(3)\n", ", line 2: raises SystemExit: 3"),
}


@pytest.mark.parametrize("case", BROKEN.values(), ids=BROKEN.keys())
def test_files_that_cannot_be_run(refused, tmp_path, case):
    text, expected = case
    file = tmp_path / "mine.py"
    file.write_bytes(text)
    message = refused("--register", file, "--policy", "echo")
    assert re.match(re.escape(str(file)) + expected, message), message


def test_files_that_are_none(refused, tmp_path):
    for absent in (tmp_path / "absent.py", tmp_path):
        assert refused("--register", absent) == f"{absent}: no such file; --register takes Python files"
    other = tmp_path / "mine.txt"
    other.write_text("x = 1\n")
    assert refused("--register", other) == f"{other}: is not a Python file; its name should end in .py"


def test_classes_that_cannot_be_registered(refused, tmp_path):
    file = tmp_path / "mine.py"
    head = "import dataclasses\nfrom jkv.policies import Policy, register\n\n\n@register\n"
    file.write_text(head + "class Mine(Policy):\n    pass\n")
    assert "ValueError: Mine needs a class attribute `name`" in refused("--register", file)
    file.write_text(head + "class Mine(Policy):\n    name = 'window'\n")
    assert "ValueError: the name 'window' belongs to Window" in refused("--register", file)
    file.write_text("x = 1\n")
    assert "no policy 'of-no-file'; choose one of" in refused("--register", file, "--policy", "of-no-file")


OWN = """
from __future__ import annotations
import dataclasses
from jkv.policies import Policy, register
from jkv.policies.base import Count as {count}

@register
@dataclasses.dataclass(frozen=True)
class Own{count}(Policy):
    n: {count}
    name = "own-{count}"
"""


def test_an_option_that_has_no_default_must_be_given(refused, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(OWN.format(count="Many"))
    use = ("--register", file, "--policy", "own-Many")
    message = refused(*use)
    assert message.startswith("--options: ")
    assert "'n'" in message
    assert refused(*use, "--options", "n=none").startswith("--options n: ")


def test_two_files_of_one_name_keep_apart(refused, tmp_path):
    files = [tmp_path / directory / "mine.py" for directory in ("one", "other")]
    for file, count in zip(files, ("One", "Other"), strict=True):
        file.parent.mkdir()
        file.write_text(OWN.format(count=count))
    for count in ("One", "Other"):
        use = ("--register", *files, "--policy", f"own-{count}", "--options", "n=none")
        assert refused(*use).startswith("--options n: ")


OPTIONS = {
    "unknown": (
        ("rkv", "lamb=0.5"),
        "--options: policy rkv has no option 'lamb'; it has lam, queries, width, threshold",
    ),
    "none there": (("knorm", "a=1"), "--options: policy knorm has no option 'a'; it has none"),
    "own": (("echo", "wait=1"), "--options: policy echo has no option 'wait'; it has weight"),
    "text for a number": (("rkv", "queries=many"), "--options queries: "),
    "fraction for a count": (("rkv", "queries=1.5"), "--options queries: "),
    "zero for a count": (("snapkv", "width=0"), "--options width: "),
    "beyond a share": (("rkv", "lam=1.5"), "--options lam: "),
    "not a number": (("rkv", "lam=nan"), "--options lam: "),
    "infinite": (("echo", "weight=inf"), "--options weight: "),
    "own, of another type": (("echo", "weight=heavy"), "--options weight: "),
    "no such word": (("vase", "form=dvk"), "--options form: "),
    "ids": (("sepllm", "separators=1,x"), "--options separators: "),
    "no equals sign": (("rkv", "lam"), "--options: 'lam' is no NAME=VALUE"),
    "twice": (("rkv", "lam=0.1", "lam=0.2"), "--options: lam is set twice"),
}


@pytest.mark.parametrize("case", OPTIONS.values(), ids=OPTIONS.keys())
def test_options(refused, case):
    (policy, *words), expected = case
    assert refused("--register", FILE, "--policy", policy, "--options", *words).startswith(expected)


@pytest.fixture
def config(tiny) -> ModelConfig:
    return load(tiny, "float32").config


def test_predictors(refused, config, tmp_path):
    file, text = tmp_path / "weights.safetensors", tmp_path / "notes.txt"
    text.write_text("not weights")
    assert refused("--policy", "knorm", "--predictor", text) == (
        "--predictor: policy knorm takes no predictor; leave it out"
    )
    assert refused("--policy", "dynts").startswith("--predictor: policy dynts needs an importance predictor")
    assert refused("--policy", "trimkv").startswith("--predictor: policy trimkv needs learned gates")
    assert "needs this model's query statistics" in refused("--policy", "triattention")
    for policy in ("dynts", "trimkv", "triattention"):
        use = ("--policy", policy, "--predictor")
        assert refused(*use, text).startswith(f"{text}: is no safetensors file that can be read (")
        assert str(tmp_path / "absent") in refused(*use, tmp_path / "absent")
        assert str(tmp_path) in refused(*use, tmp_path)  # a directory without such a file
        file.write_bytes(b"")
        assert refused(*use, file).startswith(f"{file}: is no safetensors file")

    save_predictor(file, random_predictor(config.d_model + 8))
    wide = 2 * (config.d_model + 8)
    assert refused("--policy", "dynts", "--predictor", file) == (
        f"{file}: is_head.0.weight is [{wide}, {config.d_model + 8}], expected [{wide}, {config.d_model}]; "
        "it belongs to another model or another policy"
    )
    save_predictor(file, random_predictor(config.d_model))
    weights = load_file(file)
    save_file({name: np.full_like(x, np.nan) for name, x in weights.items()}, file)
    assert "is_head.0.weight has values that are not finite" in refused("--policy", "dynts", "--predictor", file)
    save_file({"a": weights["is_head.0.weight"]}, file)
    assert "has no predictor: is_head.0.weight" in refused("--policy", "dynts", "--predictor", file)


def test_gates_with_a_tensor_missing_or_too_many(refused, config, tmp_path):
    file, prefix = tmp_path / "gates.safetensors", "model.layers.{}.self_attn.retention_gate."
    tensors = {
        prefix.format(layer) + name: np.asarray(x)
        for layer, gate in enumerate(gates(config))
        for name, x in gate.items()
    }
    gone = prefix.format(1) + "linear2.weight"
    save_file({name: x for name, x in tensors.items() if name != gone}, file)
    use = ("--policy", "trimkv", "--predictor", file)
    assert refused(*use) == f"{file}: {gone} is missing; it belongs to another model or another policy"
    save_file({name: x for name, x in tensors.items() if ".layers.1." not in name}, file)
    assert refused(*use).startswith(f"{file}: {prefix.format(1)}linear1.weight is missing (and 3 more)")
    save_file({**tensors, prefix.format(2) + "bias": tensors[prefix.format(1) + "bias"]}, file)
    assert refused(*use).startswith(f"{file}: {prefix.format(2)}bias is not expected")
    save_file({**tensors, gone: tensors[gone].T.copy()}, file)
    assert refused(*use).startswith(f"{file}: {gone} is [24, 2], expected [2, 24]")
    save_file({**tensors, prefix.format(0) + "linear1.bias": np.zeros((), np.float32)}, file)
    assert refused(*use).startswith(f"{file}: {prefix.format(0)}linear1.")


def test_query_statistics_of_another_model(refused, config, tiny, tmp_path):
    other = ModelConfig("llama", 97, 40, 72, config.n_layers + 1, config.n_heads, config.n_kv_heads, 12, 1e4)
    file = tmp_path / "query_statistics.safetensors"
    save_file({name: np.asarray(x) for name, x in query_statistics(other).items()}, file)
    expected = f"mean is [3, {config.n_heads}, 12], expected [2, {config.n_heads}, 12] (and 1 more)"
    use = ("--policy", "triattention")
    assert expected in refused(*use, "--predictor", file)
    assert expected in refused(*use, "--predictor", tmp_path)
    # Beside the model they are found without being asked for.
    model = shutil.copytree(tiny, tmp_path / "model")
    shutil.copy(file, model)
    assert f"{model / file.name}: {expected}" in refused(*use, model=model)


@dataclasses.dataclass(frozen=True)
class Unasked(Policy):
    name = "unasked"

    def score(self, state, slots):
        return jnp.stack([v[..., 0] for v in slots.values], axis=1)


@dataclasses.dataclass(frozen=True)
class Misshapen(Policy):
    name = "misshapen"

    def score(self, state, slots):
        return jnp.zeros((1, 1, 1, 5))


def engine_of(policy):
    config = ModelConfig("llama", 11, 40, 72, 2, 4, 2, 12, 1e4)
    return Engine(Decoder(config, rngs=nnx.Rngs(0)), policy=policy, rule=Retention(32, 24, 3), batch_size=2)


def test_scores_of_another_shape_are_refused_with_the_right_one():
    with pytest.raises(UserError, match=r"policy misshapen: its score has shape \(1, 1, 1, 5\); .* = \(2, 1, 1, 32\)"):
        engine_of(Misshapen()).compile()


def test_what_was_not_asked_for_is_said():
    with pytest.raises(TypeError) as failure:
        engine_of(Unasked()).compile()
    note = failure.value.__notes__[0]  # JAX adds others
    assert note == "policy 'unasked': its needs don't name tokens, keys, values, queries; they are None in slots"
