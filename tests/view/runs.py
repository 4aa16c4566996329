"""Run directories as decode writes them, made without a model: scores are random, the rest follows the budget words."""

import json
import pathlib
import random
from typing import Any

WORDS = ["so", "we", "need", "the", "sum", "of", "all", "x", "such", "that", "it", "holds", ",", "then", "wait", "."]


def eviction_rows(
    tokens: int, prompt: int, budget: int, retain: int, *, window: int, sinks: int, pin: bool, sets: int, seed: int
) -> list[dict[str, Any]]:
    """Plain Python: each set keeps its best, the newest among equals, and what is protected."""
    rng = random.Random(seed)
    there: list[list[int]] = [[] for _ in range(sets)]
    rows, last, position = [], -1, budget - 1
    while position < tokens - 1:
        kept, scores = [], []
        for s in range(sets):
            here = [*there[s], *range(last + 1, position + 1)]
            safe = [p > position - window or p < sinks or (pin and p < prompt) for p in here]
            mine = [None if x else round(rng.uniform(-2, 2), 6) for x in safe]
            order = sorted(here, key=lambda p: (float("inf") if (x := mine[here.index(p)]) is None else x, p))
            there[s] = sorted(order[-retain:])
            kept.append(there[s])
            scores.append(mine)
        rows.append({"event": len(rows), "position": position, "kept": kept, "scores": scores})
        last, position = position, position + budget - retain
    return rows


def write_run(
    path: pathlib.Path,
    *,
    ids: tuple[str, ...] = ("p0", "p1"),
    tokens: int = 90,
    prompt: int = 10,
    budget: int = 40,
    retain: int = 32,
    window: int = 5,
    sinks: int = 0,
    pin: bool = True,
    layers: int = 1,
    heads: int = 1,
    policy: str = "random",
    pieces: list[str] | None = None,
    scores: bool = True,
    seed: int = 0,
) -> pathlib.Path:
    """A run with one sample an id. Sets are nested [layer][head] unless layers = heads = 1."""
    path.mkdir(parents=True, exist_ok=True)
    words = [f" {WORDS[i % len(WORDS)]}" + ("\n\n" if i % 41 == 40 else "") for i in range(tokens)]
    words[tokens - 8] = "</think>"
    shared = layers * heads == 1
    nest = lambda sets: sets[0] if shared else [sets[at * heads : (at + 1) * heads] for at in range(layers)]
    samples, trace = [], []
    for number, id in enumerate(ids):
        rows = eviction_rows(
            tokens, prompt, budget, retain,
            window=window, sinks=sinks, pin=pin, sets=layers * heads, seed=seed + number,
        )  # fmt: skip
        samples.append({
            "id": id, "sample": 0, "prompt_tokens": prompt, "token_ids": [5] * (tokens - prompt), "text": "",
            "finish": "eos", "answer": "42", "correct": True, "evictions": len(rows), "peak_slots": budget,
            "mean_slots": 1.0, "pieces": pieces or words,
        })  # fmt: skip
        for row in rows:
            owner = {"id": id, "sample": 0, "event": row["event"], "position": row["position"]}
            more = {"scores": nest(row["scores"])} if scores else {}
            granularity = "shared" if shared else "head"
            trace.append({**owner, "granularity": granularity, "kept": nest(row["kept"]), **more})
    for name, lines in (("samples", samples), ("trace", trace)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (path / f"{name}.jsonl").write_text(text, "utf-8")
    summary = {
        "model": "demo-llama", "policy": policy, "budget": budget, "retain": retain, "window": window, "sinks": sinks,
        "pin_prompt": pin,
    }  # fmt: skip
    (path / "summary.json").write_text(json.dumps(summary))
    return path


def edit(path: pathlib.Path, name: str, change: Any) -> None:
    """Rewrite a JSONL file of a run; ``change`` takes the rows and returns them (or other text lines)."""
    rows = change([json.loads(line) for line in (path / name).read_text("utf-8").splitlines()])
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (path / name).write_text("".join(line + "\n" for line in lines), "utf-8")
