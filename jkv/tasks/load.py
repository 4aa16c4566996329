"""Find a task by name: the demo, a benchmark, or a JSONL or YAML file."""

import pathlib

from jkv.errors import UserError
from jkv.load import Loaded
from jkv.tasks.benchmark import read_benchmark
from jkv.tasks.jsonl import read_jsonl
from jkv.tasks.problem import Problem
from jkv.tasks.spec import BENCHMARKS

DEMO_PROBLEMS = 64


def load_task(name: str, loaded: Loaded, *, limit: int | None, seed: int = 0) -> list[Problem]:
    """Problems of a task, encoded with the model's tokenizer; ``seed`` chooses the demo's, 0 are for evaluation.

    Raises UserError if there is no such task.
    """
    if name == "demo":
        return _demo(loaded, DEMO_PROBLEMS if limit is None else limit, seed)
    path = pathlib.Path(name)
    if name in BENCHMARKS or path.suffix in (".yaml", ".yml"):
        return read_benchmark(name, loaded.tokenizer, limit=limit)
    if path.suffix != ".jsonl":
        mend = f"give demo, {', '.join(BENCHMARKS)}, a FILE.jsonl or a FILE.yaml"
        raise UserError(f"no task {name!r}", where="--task", mend=mend)
    return read_jsonl(path, loaded.tokenizer)[:limit]


def _demo(loaded: Loaded, n: int, seed: int) -> list[Problem]:
    from jkv.demo.task import problems

    if loaded.tokenizer is None or "<think>" not in loaded.tokenizer.get_vocab():
        raise UserError(
            f"the demo task is written in the demo models' words, which {loaded.name} doesn't know",
            where="--task",
            mend="use demo-llama or demo-qwen, or give another --task",
        )
    encode = loaded.tokenizer.encode
    return [
        Problem(p.id, tuple(encode(p.prompt, add_special_tokens=False)), p.answer, where=p.id)
        for p in problems(n, seed)
    ]
