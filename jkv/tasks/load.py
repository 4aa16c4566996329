"""Load a task by its name: the demo, a shipped benchmark, or a JSONL or YAML file."""

import pathlib
from typing import TYPE_CHECKING, Literal

from jkv.errors import UserError
from jkv.tasks.benchmark import read_benchmark
from jkv.tasks.jsonl import read_jsonl
from jkv.tasks.problem import Problem
from jkv.tasks.spec import BENCHMARKS, SHIPPED, read_yaml

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEMO_PROBLEMS = 64


def load_task(
    name: str, tokenizer: "PreTrainedTokenizerBase | None", *, model: str, limit: int | None, seed: int = 0
) -> list[Problem]:
    """Load the problems of a task and encode their prompts with a model's tokenizer.

    Args:
        name: demo, the name of a benchmark, a FILE.jsonl or a FILE.yaml.
        tokenizer: None for a model that has none; then only prompts given as token ids can be read.
        model: the model's name, for error messages.
        limit: at most so many problems; None: all (of the demo: DEMO_PROBLEMS).
        seed: chooses the demo's problems (other tasks ignore it); seed 0 has those of the evaluation.

    Raises:
        UserError: there is no such task, its data can't be read, or the model can't encode it.
    """
    kind = task_kind(name)
    if kind == "demo":
        return _demo(tokenizer, model, DEMO_PROBLEMS if limit is None else limit, seed)
    if kind == "benchmark":
        return read_benchmark(name, tokenizer, limit=limit)
    return read_jsonl(pathlib.Path(name), tokenizer)[:limit]


def count_problems(name: str, limit: int | None) -> int | None:
    """Count a task's problems without a tokenizer and without a network; None if the number is unknown.

    Raises:
        UserError: there is no such task, or its file can't be read.
    """
    kind, path = task_kind(name), pathlib.Path(name).expanduser()
    if kind == "demo":
        return limit or DEMO_PROBLEMS
    if kind == "benchmark":
        count = read_yaml(SHIPPED / f"{name}.yaml" if name in BENCHMARKS else path).problems
    else:
        try:
            count = sum(bool(line.strip()) for line in path.read_bytes().splitlines())
        except OSError as error:
            raise UserError(f"can't be read ({error.strerror})", where=name) from None
    return count if limit is None or count is None else min(limit, count)


def task_kind(name: str) -> Literal["demo", "benchmark", "rows"]:
    """Which kind of task a name stands for: 'rows' is a FILE.jsonl.

    Raises:
        UserError: it is neither demo, a benchmark, a FILE.jsonl nor a FILE.yaml.
    """
    suffix = pathlib.Path(name).suffix
    if name == "demo":
        return "demo"
    if name in BENCHMARKS or suffix in (".yaml", ".yml"):
        return "benchmark"
    if suffix == ".jsonl":
        return "rows"
    mend = f"give demo, {', '.join(BENCHMARKS)}, a FILE.jsonl or a FILE.yaml"
    raise UserError(f"no task {name!r}", where="--task", mend=mend)


def _demo(tokenizer: "PreTrainedTokenizerBase | None", model: str, n: int, seed: int) -> list[Problem]:
    from jkv.demo.task import problems

    if tokenizer is None or "<think>" not in tokenizer.get_vocab():
        raise UserError(
            f"the demo task uses the demo models' vocabulary, which {model} doesn't have",
            where="--task",
            mend="use demo-llama or demo-qwen, or give another --task",
        )
    encode = tokenizer.encode
    return [
        Problem(p.id, tuple(encode(p.prompt, add_special_tokens=False)), p.answer, where=p.id)
        for p in problems(n, seed)
    ]
