"""``jkv.load.load``: what it finds, and the line it gives when it doesn't."""

import json
import subprocess
import sys

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from converters.__main__ import convert
from converters.fill import leaves
from converters.hf import write_hf
from jkv.errors import UserError
from jkv.files import locate as locate_module
from jkv.files.locate import locate
from jkv.load import load
from tests.converters.conftest import TINY, attempt, random_decoder


def save_tokenizer(directory, words=50):
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(words)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0", eos_token="w2").save_pretrained(directory)


@pytest.fixture
def directory(tmp_path):
    write_hf(random_decoder(TINY), tmp_path / "model")
    return tmp_path / "model"


def test_without_a_tokenizer(directory):
    loaded = load(directory)
    assert (loaded.config, loaded.tokenizer, loaded.name, loaded.path) == (TINY, None, str(directory), directory)


def test_converted_and_hugging_face_load_alike(directory, tmp_path):
    save_tokenizer(directory)
    convert(str(directory), tmp_path / "converted")
    one, other = load(directory, "bfloat16"), load(str(tmp_path / "converted"), "bfloat16")
    assert one.config == other.config
    assert one.tokenizer.encode("w7 w3") == other.tokenizer.encode("w7 w3") == [7, 3]
    assert one.tokenizer.get_vocab() == other.tokenizer.get_vocab()
    a, b = leaves(one.model), leaves(other.model)
    assert all(np.array_equal(a[path], b[path]) and a[path].dtype == b[path].dtype for path in a)


@pytest.mark.parametrize("name", ["demo-llama", "demo-qwen"])
def test_a_demo_tokenizer_is_what_auto_tokenizer_gives(name):
    """Read without it, which takes seconds."""
    ours, theirs = load(name).tokenizer, AutoTokenizer.from_pretrained(str(locate(name)))
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours.get_vocab() == theirs.get_vocab()
    for chat in ([{"role": "user", "content": "b = 1 + 2 ? b"}], [{"role": "assistant", "content": "so b = 3"}]):
        prompts = [t.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] for t in (ours, theirs)]
        assert prompts[0] == prompts[1]
    every = [*range(len(ours.get_vocab()))] * 2
    for skip in (True, False):
        assert ours.decode(every, skip_special_tokens=skip) == theirs.decode(every, skip_special_tokens=skip)


def line(name) -> str:
    with pytest.raises(UserError) as error:
        load(name)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_no_such_model(tmp_path):
    tried = "is not a demo model (demo-llama, demo-qwen), not a directory, not a hub id (org/name)"
    for name in ("demo-gpt", "a/b/c", "/nowhere/at/all", "", "../up", "org/na me", "~nobody-of-that-name/x"):
        assert line(name) == f"no such model: {name!r} {tried}"
    (tmp_path / "model.safetensors").write_bytes(b"")
    message = f"{tmp_path}/model.safetensors: is a file, expected the directory of a model"
    assert line(tmp_path / "model.safetensors") == message


def test_hub_offline():
    message = line("no-such-org/no-such-model")
    assert message.startswith("no such model: 'no-such-org/no-such-model' is not a directory, and the hub says ")
    assert message.endswith("; check the name and the network, or use a demo model (demo-llama, demo-qwen)")


def test_hub_fetches_weights_and_json_only(directory, monkeypatch):
    asked = {}

    def download(hub_id, **arguments):
        asked.update(arguments, hub_id=hub_id)
        return str(directory)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert load("org/name").name == "org/name"
    assert asked["hub_id"] == "org/name"
    assert not any(pattern.endswith(("bin", "pt", "py", "*")) for pattern in asked["allow_patterns"])


def test_demo_names(directory, monkeypatch, tmp_path):
    monkeypatch.setattr(locate_module, "CHECKPOINTS", tmp_path)
    assert line("demo-llama") == f"{tmp_path}/demo-llama: the demo checkpoint isn't there; install jkv again"
    directory.rename(tmp_path / "demo-llama")
    assert locate("demo-llama") == tmp_path / "demo-llama"


def test_tokenizer_of_another_model(directory):
    save_tokenizer(directory, words=51)
    assert line(directory) == (
        f"{directory}: the tokenizer has token id 50, the model's vocab_size is 50; "
        "the tokenizer belongs to another model"
    )


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", '{"model": {"type": "Pickle"}}'])
def test_damaged_tokenizer(directory, content):
    save_tokenizer(directory)
    (directory / "tokenizer.json").write_text(content)
    assert line(directory).startswith(f"{directory}: the tokenizer can't be read (")


def test_code_in_a_checkpoint_is_not_run(directory):
    save_tokenizer(directory)
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    settings.update(tokenizer_class="Evil", auto_map={"AutoTokenizer": [None, "evil.Evil"]})
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    (directory / "evil.py").write_text("raise SystemExit('the code of a checkpoint was run')")
    line = attempt(load, directory)
    assert line == "" or "the tokenizer can't be read" in line


def test_importing_is_light():
    code = (
        "import sys, jkv, jkv.load, converters; "
        "print([name for name in ('transformers', 'orbax', 'huggingface_hub', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
