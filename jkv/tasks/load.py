"""Find a task by name: the demo, a benchmark, or a JSONL or YAML file."""

import pathlib
from typing import Any, Literal

from jkv.errors import UserError
from jkv.tasks.benchmark import read_benchmark
from jkv.tasks.jsonl import read_jsonl
from jkv.tasks.problem import Problem
from jkv.tasks.spec import BENCHMARKS, SHIPPED, read_yaml

DEMO_PROBLEMS = 64


def load_task(name: str, tokenizer: Any, *, model: str, limit: int | None, seed: int = 0) -> list[Problem]:
    """Problems of a task, encoded with a model's tokenizer.

    Args:
        name: demo, a benchmark, a FILE.jsonl or a FILE.yaml.
        tokenizer: a transformers tokenizer, None for a model that has none.
        model: what the model is called, for messages.
        limit: problems at most.
        seed: chooses the demo's problems; those of seed 0 are for evaluation.

    Raises:
        UserError: there is no such task, it can't be read, or the model can't read it.
    """
    kind = task_kind(name)
    if kind == "demo":
        return _demo(tokenizer, model, DEMO_PROBLEMS if limit is None else limit, seed)
    if kind == "benchmark":
        return read_benchmark(name, tokenizer, limit=limit)
    return read_jsonl(pathlib.Path(name), tokenizer)[:limit]


def count_problems(name: str, limit: int | None) -> int | None:
    """How many problems a task has, without a tokenizer and without a network; None if that isn't known.

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
    """What a task's name means. Raises UserError if it means nothing."""
    suffix = pathlib.Path(name).suffix
    if name == "demo":
        return "demo"
    if name in BENCHMARKS or suffix in (".yaml", ".yml"):
        return "benchmark"
    if suffix == ".jsonl":
        return "rows"
    mend = f"give demo, {', '.join(BENCHMARKS)}, a FILE.jsonl or a FILE.yaml"
    raise UserError(f"no task {name!r}", where="--task", mend=mend)


def _demo(tokenizer: Any, model: str, n: int, seed: int) -> list[Problem]:
    from jkv.demo.task import problems

    if tokenizer is None or "<think>" not in tokenizer.get_vocab():
        raise UserError(
            f"the demo task is written in the demo models' words, which {model} doesn't know",
            where="--task",
            mend="use demo-llama or demo-qwen, or give another --task",
        )
    encode = tokenizer.encode
    return [
        Problem(p.id, tuple(encode(p.prompt, add_special_tokens=False)), p.answer, where=p.id)
        for p in problems(n, seed)
    ]
