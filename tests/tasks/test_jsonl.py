"""Problems from JSONL: what was written is what is read. (Refusals: tests/command/test_bad_input.py.)"""

import json
import pathlib
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jkv.demo import tokenizer as demo_tokenizer
from jkv.errors import UserError
from jkv.load import load_tokenizer
from jkv.tasks.jsonl import read_jsonl

CHARACTERS = st.characters(exclude_categories=("Cs",))
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.text(CHARACTERS) | st.integers(),
            "prompt_ids": st.lists(st.integers(0, 10**6), min_size=1, max_size=9),
        },
        optional={"answer": st.none() | st.text(CHARACTERS) | st.integers() | st.floats(allow_nan=False)},
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda row: str(row["id"]),
)


class Echo:
    """A tokenizer of code points."""

    chat_template = "yes"

    def encode(self, text, add_special_tokens):
        assert not add_special_tokens
        return [ord(char) for char in text]

    def apply_chat_template(self, messages, add_generation_prompt, tokenize):
        assert add_generation_prompt
        assert not tokenize
        return "|".join(f"{m['role']}:{m['content']}" for m in messages)


def read(text: str | bytes):
    with tempfile.TemporaryDirectory() as directory:
        file = pathlib.Path(directory) / "task.jsonl"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_jsonl(file, Echo())


@given(ROWS, st.booleans(), st.sampled_from(["\n", "\r\n", "\n\n", "\n \n"]), st.booleans())
def test_rows_come_back(rows, ascii_only, end, last_end):
    text = end.join(json.dumps(row, ensure_ascii=ascii_only) for row in rows) + end * last_end
    problems = read(text)
    assert [p.id for p in problems] == [str(row["id"]) for row in rows]
    assert [p.prompt_ids for p in problems] == [tuple(row["prompt_ids"]) for row in rows]
    answers = [row.get("answer") for row in rows]
    assert [p.answer for p in problems] == [None if a is None else str(a) for a in answers]
    numbers = [int(p.where.rpartition(":")[2]) for p in problems]
    assert numbers == sorted(set(numbers))
    assert numbers[0] == 1


@given(st.text(CHARACTERS, min_size=1))
def test_prompts_are_used_as_they_are(text):
    (problem,) = read(json.dumps({"id": "a", "prompt": text}, ensure_ascii=False))
    assert problem.prompt_ids == tuple(map(ord, text))


@given(st.binary() | st.text('{}[]":,\\ \n"idpromptanswer01').map(str.encode))
def test_any_bytes_are_read_or_refused_in_one_line(data):
    try:
        read(data)
    except UserError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017 (the other outcome is as good)


def test_byte_order_mark_and_line_separators():
    assert read(b'\xef\xbb\xbf{"id": 1, "prompt": "a"}')[0].id == "1"
    (problem,) = read('{"id": "a\u2028b", "prompt": "c\x85d"}')
    assert (problem.id, problem.prompt_ids) == ("a\u2028b", (ord("c"), 0x85, ord("d")))


def test_messages_go_through_the_chat_template(tmp_path):
    row = {"id": "a", "messages": [{"role": "user", "content": "b = 1 + 2 ? b"}]}
    (problem,) = read(json.dumps(row))
    assert "".join(map(chr, problem.prompt_ids)) == "user:b = 1 + 2 ? b"
    demo_tokenizer.save(tmp_path, 512)
    tokenizer = load_tokenizer(tmp_path, len(demo_tokenizer.vocabulary()))
    (tmp_path / "task.jsonl").write_text(json.dumps(row))
    (problem,) = read_jsonl(tmp_path / "task.jsonl", tokenizer)
    assert tokenizer.decode(problem.prompt_ids) == "<bos> b = 1 + 2 ? b<think>"


def test_ids_are_unique_as_text():
    with pytest.raises(UserError, match=r"task\.jsonl:2: id '1' is also on line 1"):
        read('{"id": 1, "prompt": "a"}\n{"id": "1", "prompt": "a"}')
