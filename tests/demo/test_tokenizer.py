"""A word is a token, through every way of loading the tokenizer; the chat template gives the task's prompt."""

import json
import pathlib

import pytest
from transformers import AutoTokenizer

from jkv.demo import task, tokenizer

VOCABULARY = tokenizer.vocabulary()


@pytest.fixture(params=["llama", "qwen2", "none"])
def loaded(request: pytest.FixtureRequest, tmp_path: pathlib.Path):
    """What AutoTokenizer makes of the files; it chooses a class by the model type of config.json, if there is one."""
    tokenizer.save(tmp_path, 512)
    if request.param != "none":
        (tmp_path / "config.json").write_text(json.dumps({"model_type": request.param}))
    return AutoTokenizer.from_pretrained(tmp_path)


def test_vocabulary_is_a_numbering():
    assert list(VOCABULARY.values()) == list(range(87))
    assert [VOCABULARY[word] for word in tokenizer.SPECIAL] == [0, 1, 2, 3, 4, 5]


def test_a_word_is_a_token(loaded):
    for problem in task.problems(50, seed=3):
        text = f"{problem.prompt} {problem.solution()}"
        ids = [VOCABULARY[word] for word in text.split()]
        assert loaded.encode(text, add_special_tokens=False) == ids
        assert loaded(text)["input_ids"] == ids


def test_round_trip(loaded):
    for problem in task.problems(50, seed=4):
        text = f"{problem.prompt} {problem.solution()}"
        ids = loaded.encode(text, add_special_tokens=False)
        decoded = loaded.decode(ids)
        # The words in angle brackets take the space before them.
        assert decoded == text.replace(" <", "<")
        assert loaded.encode(decoded, add_special_tokens=False) == ids
        kept = loaded.decode(ids, skip_special_tokens=True)
        assert kept == decoded.removeprefix("<bos>").removesuffix("<eos>")
        assert "<think>" in kept
        assert problem.grade(kept)
        assert problem.grade(decoded)


def test_tokens_one_by_one_spell_the_text(loaded):
    (problem,) = task.problems(1, seed=5)
    ids = loaded.encode(problem.prompt, add_special_tokens=False)
    assert "".join(loaded.decode([i]) for i in ids) == loaded.decode(ids)


def test_chat_template(loaded):
    (problem,) = task.problems(1, seed=6)
    user = {"role": "user", "content": problem.question}
    assert loaded.apply_chat_template([user], add_generation_prompt=True, tokenize=False) == problem.prompt
    thought, _ = problem.solution().rsplit(" ", 1)
    talk = [user, {"role": "assistant", "content": f"<think> {thought}"}]
    assert loaded.apply_chat_template(talk, tokenize=False) == f"{problem.prompt} {problem.solution()}"


def test_special_tokens(loaded):
    assert (loaded.pad_token_id, loaded.bos_token_id, loaded.eos_token_id) == (0, 1, 2)
    assert loaded.convert_tokens_to_ids(["<think>", "</think>"]) == [4, 5]
    assert len(loaded) == 87
    assert max(loaded.get_vocab().values()) == 86
