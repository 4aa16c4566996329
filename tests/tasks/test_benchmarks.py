"""Benchmarks: their YAML files, rows from files and from the hub, prompts, and refusals in one line."""

import collections
import json
import re

import datasets
import pytest
import yaml

from jkv.errors import UserError
from jkv.tasks.benchmark import read_benchmark
from jkv.tasks.formats import multiple_choice
from jkv.tasks.spec import BENCHMARKS, SHIPPED, read_yaml
from tests.tasks.stand_ins import LAYOUTS, write

NAMES = ("aime24", "aime25", "amc23", "gpqa_d", "gaokao2023en", "math500")
DIRECTIVE = r"Please reason step by step, and put your final answer within \boxed{}."


class Echo:
    """A tokenizer of code points with a chat template that shows what it is given."""

    chat_template = "yes"

    def encode(self, text, add_special_tokens):
        assert not add_special_tokens
        return [ord(char) for char in text]

    def apply_chat_template(self, messages, add_generation_prompt, tokenize):
        assert add_generation_prompt
        assert not tokenize
        return "".join(f"<{m['role']}>{m['content']}" for m in messages) + "<assistant>"


def prompt(problem) -> str:
    return "".join(map(chr, problem.prompt_ids))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("JKV_DATA", str(tmp_path))
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    return tmp_path


def test_the_contract_names_these():
    assert set(BENCHMARKS) == set(NAMES) == set(LAYOUTS)


@pytest.mark.parametrize("name", NAMES)
def test_shipped_files_are_whole(name):
    file = SHIPPED / f"{name}.yaml"
    benchmark = read_yaml(file)
    assert re.fullmatch(r"[\w-]+/[\w.-]+", benchmark.hub)
    assert benchmark.data is None
    # One commit is not known: then the newest is taken, and the file says so.
    pinned = re.fullmatch("[0-9a-f]{40}", benchmark.revision)
    assert pinned or (benchmark.revision == "main" and "revision is the newest" in file.read_text("utf-8"))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".csv", ".json"])
@pytest.mark.parametrize("name", NAMES)
def test_stand_ins_in_the_same_columns(name, suffix, folder):
    path = write(name, suffix, folder)
    problems = read_benchmark(name, Echo())
    assert len(problems) == len(LAYOUTS[name])
    assert len({p.id for p in problems}) == len(problems)
    assert problems[1].where == f"{path}, row 2"
    assert [p.id for p in read_benchmark(name, Echo(), limit=2)] == [p.id for p in problems[:2]]
    text = prompt(problems[1])
    assert text.startswith("<user>")
    assert text.endswith("<assistant>")
    if name == "gpqa_d":
        assert {p.grading for p in problems} == {"letter"}
        assert r"letter of your final answer within \boxed{}." in text
        return
    assert {p.grading for p in problems} == {"math"}
    assert text.endswith(f"\n{DIRECTIVE}<assistant>")
    assert "system" not in text
    expected = {
        "aime24": ["61", "<user>Find $1+1$.", {"002", "2"}],  # CSV has no types: 002 is read as a number there
        "aime25": ["1", "<user>Find $1+1$.", {"2"}],
        "amc23": ["1", "<user>Find $1/2$.", {"0.5"}],
        "gaokao2023en": ["gaokao2023en-002", "<user>Find $1^2$.", {"$1$"}],
        "math500": ["test/algebra/1.json", "<user>Halve $1$.", {r"\frac{1}{2}"}],
    }[name]
    assert problems[1].id == expected[0]
    assert text.startswith(expected[1])
    assert problems[1].answer in expected[2]


def test_a_directory_of_files(folder):
    (folder / "math500").mkdir()
    write("math500", ".parquet", folder / "math500")
    assert len(read_benchmark("math500", Echo())) == 3


def test_choices_are_shuffled_alike_everywhere_and_each_comes_everywhere(folder):
    write("gpqa_d", ".jsonl", folder)
    problems = read_benchmark("gpqa_d", Echo())
    first = prompt(problems[0]).removeprefix("<user>").removesuffix("<assistant>")
    # Written down once: another order would make other prompts of earlier runs.
    assert first.splitlines() == FIRST_QUESTION
    for problem, row in zip(problems, LAYOUTS["gpqa_d"], strict=True):
        lines = dict(re.findall(r"^([A-D])\) (.*)$", prompt(problem), re.MULTILINE))
        assert sorted(lines) == ["A", "B", "C", "D"]
        assert lines[problem.answer] == row["Correct Answer"].strip()
        assert len(set(lines.values())) == 4
    letters = collections.Counter(p.answer for p in problems)
    assert set(letters) == set("ABCD")
    assert max(letters.values()) <= 20
    # A problem's order doesn't depend on the others.
    alone = multiple_choice.question(
        {"problem": "Which is 7?", "answer": "7", "wrong": ["71", "72", "73"]},
    )
    assert alone[0] == prompt(problems[7]).removeprefix("<user>").removesuffix("<assistant>")


FIRST_QUESTION = [
    "Which is 0?",
    "",
    "A) 03",
    "B) 0",
    "C) 02",
    "D) 01",
    "",
    r"Please reason step by step, and put the letter of your final answer within \boxed{}.",
]


def test_the_hub_is_asked_for_the_pinned_revision(monkeypatch):
    asked = []

    def load_dataset(*arguments, **options):
        asked.append((arguments, options))
        return datasets.Dataset.from_list(LAYOUTS["gpqa_d"])

    monkeypatch.delenv("JKV_DATA", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    problems = read_benchmark("gpqa_d", Echo(), limit=2)
    assert [p.where for p in problems] == ["Idavidrein/gpqa, row 1", "Idavidrein/gpqa, row 2"]
    ((arguments, options),) = asked
    assert arguments == ("Idavidrein/gpqa", "gpqa_diamond")
    assert options == {"split": "train", "revision": read_yaml(SHIPPED / "gpqa_d.yaml").revision}


@pytest.mark.parametrize(("name", "mend"), [("math500", "check the network"), ("gpqa_d", "accept its terms at")])
def test_without_a_network_it_says_what_to_do(name, mend, monkeypatch):
    monkeypatch.delenv("JKV_DATA", raising=False)
    with pytest.raises(UserError) as refused:
        read_benchmark(name, Echo())
    message = str(refused.value)
    assert len(message.splitlines()) == 1
    assert f"{name} can't be loaded from the hub" in message
    assert mend in message
    assert f"put {name}.jsonl (or .csv, .parquet) into a directory and set JKV_DATA to its path" in message


GOOD = {"problem": "1+1?", "answer": "2"}
BAD_FILES = {
    "not JSON": ("{", r"math500\.jsonl: can't be read \("),
    "empty": ("", r"math500\.jsonl: (can't be read|holds no problem)"),
    "a list": ("[1, 2]", r"math500\.jsonl"),
    "no column": (
        json.dumps({"problem": "1+1?"}),
        r"math500\.jsonl, row 1: there is no column 'answer'; it has problem",
    ),
    "null": (json.dumps(GOOD) + "\n" + json.dumps({**GOOD, "answer": None}), r"row 2: 'answer' is empty"),
    "blank": (json.dumps({**GOOD, "problem": "  "}), r"row 1: 'problem' is a str, not text or a number"),
    "a list of answers": (json.dumps({**GOOD, "answer": ["2"]}), r"row 1: 'answer' is a list"),
    "mixed kinds": (json.dumps(GOOD) + "\n" + json.dumps({**GOOD, "answer": {"a": 1}}), r"math500\.jsonl"),
    "twice": ("\n".join([json.dumps({**GOOD, "unique_id": "a"})] * 2), r"row 2: id 'a' is also in row 1"),
}


@pytest.mark.parametrize("case", BAD_FILES.values(), ids=BAD_FILES.keys())
def test_bad_files_are_refused_in_one_line(case, folder):
    content, expected = case
    (folder / "math500.jsonl").write_text(content)
    with pytest.raises(UserError) as refused:
        read_benchmark("math500", Echo())
    assert len(str(refused.value).splitlines()) == 1
    assert re.search(expected, str(refused.value))
    assert ";" in str(refused.value)


def test_bad_bytes_are_refused(folder):
    for suffix in (".parquet", ".jsonl", ".csv"):
        path = folder / f"math500{suffix}"
        path.write_bytes(b"\x00\xff\xfePAR1" * 100)
        with pytest.raises(UserError, match=f"math500{suffix}"):
            read_benchmark("math500", Echo())
        path.unlink()
    (folder / "math500").mkdir()
    with pytest.raises(UserError, match="is not a file or a directory of files of one of the kinds"):
        read_benchmark("math500", Echo())


def test_a_folder_that_is_not_there(folder, monkeypatch):
    monkeypatch.setenv("JKV_DATA", str(folder / "absent"))
    with pytest.raises(UserError, match=r"JKV_DATA=.*absent: no such directory"):
        read_benchmark("math500", Echo())


def test_models_that_can_not_chat(folder):
    write("math500", ".jsonl", folder)
    with pytest.raises(UserError, match="no tokenizer to read math500 with"):
        read_benchmark("math500", None)
    base = Echo()
    base.chat_template = None
    with pytest.raises(UserError, match=r"row 1: the model's tokenizer has no chat template"):
        read_benchmark("math500", base)


@pytest.fixture
def mine(tmp_path):
    """A benchmark of the user's own, with a format of its own."""
    (tmp_path / "rows.jsonl").write_text('{"q": "capital of France", "a": "Paris"}\n{"q": "of Peru", "a": "Lima"}\n')
    (tmp_path / "plain.py").write_text(
        'GRADING = "exact"\nCOLUMNS = ("problem", "answer")\n\n\ndef question(fields):\n'
        '    return f"Q: {fields[\'problem\']}", fields["answer"].upper()\n'
    )
    file = tmp_path / "capitals.yaml"
    content = {"data": "rows.jsonl", "format": "plain.py", "columns": {"problem": "q", "answer": "a"}}
    file.write_text(yaml.safe_dump(content))
    return file, content


def test_a_benchmark_of_ones_own(mine):
    problems = read_benchmark(str(mine[0]), Echo())
    assert [(p.id, p.answer, p.grading) for p in problems] == [
        ("capitals-001", "PARIS", "exact"),
        ("capitals-002", "LIMA", "exact"),
    ]
    assert prompt(problems[0]) == "<user>Q: capital of France<assistant>"


OWN = {
    "no data": ({"data": None}, "needs one of hub and data"),
    "hub and data": ({"hub": "a/b"}, "needs one of hub and data"),
    "unknown field": ({"spilt": "test"}, "spilt: .*; fields are format, columns, hub"),
    "no columns": (
        {"columns": {"problem": "q"}},
        "columns has no entry for answer; format plain.py needs problem, answer",
    ),
    "kind": ({"columns": [1]}, "columns: Input should be a valid dictionary"),
    "absent data": ({"data": "absent.jsonl"}, r"absent\.jsonl: no such file"),
    "absent format": ({"format": "absent.py"}, "there is no format 'absent.py'"),
    "format": ({"format": "essay"}, "there is no format 'essay'"),
}


@pytest.mark.parametrize("case", OWN.values(), ids=OWN.keys())
def test_a_bad_yaml_is_refused(case, mine):
    file, content = mine
    changes, expected = case
    file.write_text(yaml.safe_dump({key: value for key, value in {**content, **changes}.items() if value is not None}))
    with pytest.raises(UserError, match=expected) as refused:
        read_benchmark(str(file), Echo())
    assert len(str(refused.value).splitlines()) == 1


def test_files_that_are_no_yaml_and_formats_that_fail(mine):
    file, _ = mine
    whole = file.read_text()
    for content in ("[", "1", "", "a: b: c"):
        file.write_text(content)
        with pytest.raises(UserError, match=r"capitals\.yaml"):
            read_benchmark(str(file), Echo())
    with pytest.raises(UserError, match="no such file"):
        read_benchmark(str(file.with_name("absent.yaml")), Echo())
    file.write_text(whole)
    plain = file.with_name("plain.py")
    code = plain.read_text()
    plain.write_text("1/0")
    with pytest.raises(UserError, match=r"plain\.py: can't be run \(ZeroDivisionError"):
        read_benchmark(str(file), Echo())
    plain.write_text(code.replace('"exact"', '"close"'))
    with pytest.raises(UserError, match="GRADING is 'close'; give one of exact, math, letter"):
        read_benchmark(str(file), Echo())
    plain.write_text(code.replace("question", "ask"))
    with pytest.raises(UserError, match="has no question"):
        read_benchmark(str(file), Echo())
    plain.write_text(code.replace('fields["answer"]', "fields['reply']"))
    with pytest.raises(UserError, match=r"rows\.jsonl, row 1: the format fails \(KeyError"):
        read_benchmark(str(file), Echo())
