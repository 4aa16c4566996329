"""What a run leaves behind: every field of the contract, and that the fields agree with each other."""

import itertools
import json
import types

import pytest

from jkv import decode
from jkv.report.statistics import interval
from tests.command.conftest import read_jsonl, write_rows
from tests.support.tiny import prompts

BUDGET, RETAIN, WINDOW, NEW, SAMPLES, BATCH = 32, 24, 4, 60, 2, 4
LENGTHS = (5, 9, 20)
L, K, H, ITEMSIZE = 2, 2, 12, 4

SAMPLE = {
    "id": str, "sample": int, "prompt_tokens": int, "token_ids": list, "text": str, "finish": str,
    "answer": (str, type(None)), "correct": (bool, type(None)), "evictions": int, "peak_slots": int,
}  # fmt: skip
SUMMARY = {
    "model": str, "policy": str, "budget": int, "retain": int, "window": int, "sinks": int, "pin_prompt": bool,
    "batch_size": int, "samples": int, "pass_at_1": float, "pass_at_1_low": float, "pass_at_1_high": float,
    "maj_at_k": float, "truncation_rate": float, "mean_tokens": float, "tokens": int, "wall_s": float,
    "compile_s": float, "tps": float, "tps_paper": float, "evictions": int, "peak_slots": int, "mean_slots": float,
    "kv_bytes": int, "kv_bytes_full": int, "recompiles": int, "device": str,
}  # fmt: skip
TRACE = {"id": str, "sample": int, "event": int, "position": int, "granularity": str, "kept": list, "scores": list}


@pytest.fixture(scope="module", params=["shared", "head"])
def made(request, wordy, tmp_path_factory):
    """One run with evictions, by main() itself; its files, and the arguments it was made with."""
    directory = tmp_path_factory.mktemp("run")
    ids = prompts(*LENGTHS)
    rows = [
        {"id": "graded", "prompt_ids": ids[0], "answer": "7"},
        {"id": "plain", "prompt_ids": ids[1]},
        {"id": "graded too", "prompt_ids": ids[2], "answer": 12},
    ]
    arguments = [
        "--model", str(wordy), "--dtype", "float32", "--task", str(write_rows(directory / "task.jsonl", rows)),
        "--policy", "random", "--budget", str(BUDGET), "--retain", str(RETAIN), "--window", str(WINDOW),
        "--no-pin-prompt", "--granularity", request.param, "--samples", str(SAMPLES), "--batch-size", str(BATCH),
        "--max-new-tokens", str(NEW), "--temperature", "1.5", "--top-p", "1", "--top-k", "0", "--seed", "3", "--quiet",
    ]  # fmt: skip
    out = directory / "out"
    decode.main([*arguments, "--trace", "--out", str(out)])
    return types.SimpleNamespace(
        arguments=arguments,
        out=out,
        granularity=request.param,
        samples=read_jsonl(out / "samples.jsonl"),
        trace=read_jsonl(out / "trace.jsonl"),
        summary=json.loads((out / "summary.json").read_text()),
    )


def assert_fields(row, fields):
    assert fields.keys() <= row.keys()
    for name, kind in fields.items():
        assert isinstance(row[name], kind), (name, row[name])
        assert kind is not int or type(row[name]) is int


def test_samples(made):
    lengths = dict(zip(("graded", "plain", "graded too"), LENGTHS, strict=True))
    keys = sorted((row["id"], row["sample"]) for row in made.samples)
    assert keys == sorted(itertools.product(lengths, range(SAMPLES)))
    for row in made.samples:
        assert_fields(row, SAMPLE)
        tokens = row["token_ids"]
        assert row["prompt_tokens"] == lengths[row["id"]]
        assert all(type(t) is int and 0 <= t < 97 for t in tokens)
        assert row["finish"] == ("eos" if tokens[-1] == 2 else "length")
        assert len(tokens) == NEW if row["finish"] == "length" else len(tokens) <= NEW
        assert 2 not in tokens[:-1]
        inserted = row["prompt_tokens"] + len(tokens) - 1
        assert row["evictions"] == max(0, -(-(inserted - BUDGET) // (BUDGET - RETAIN)))
        assert row["peak_slots"] == min(inserted, BUDGET)
        assert len(row["pieces"]) == row["prompt_tokens"] + len(tokens), "a traced run has the text of every token"
        assert (row["correct"] is None) == (row["id"] == "plain")
    assert {row["finish"] for row in made.samples} == {"eos", "length"}, "the run shows both ways to end"
    assert any(max(row["token_ids"]) > 84 for row in made.samples), "a token that the tokenizer doesn't have"


def test_summary(made):
    s, rows = made.summary, made.samples
    assert_fields(s, SUMMARY)
    assert s["model"] == made.arguments[1]
    assert (s["policy"], s["budget"], s["retain"], s["window"]) == ("random", BUDGET, RETAIN, WINDOW)
    assert (s["sinks"], s["pin_prompt"], s["batch_size"], s["samples"]) == (0, False, BATCH, len(LENGTHS) * SAMPLES)
    assert s["tokens"] == sum(len(row["token_ids"]) for row in rows)
    assert s["mean_tokens"] == s["tokens"] / len(rows)
    assert s["tps"] == s["tokens"] / s["wall_s"]
    assert s["compile_s"] > 0
    assert s["evictions"] == sum(row["evictions"] for row in rows) > 0
    assert s["peak_slots"] == max(row["peak_slots"] for row in rows) == BUDGET
    assert 0 < s["mean_slots"] <= s["peak_slots"]
    assert s["truncation_rate"] == sum(row["finish"] == "length" for row in rows) / len(rows)
    assert s["kv_bytes"] == L * BATCH * K * BUDGET * H * 2 * ITEMSIZE
    assert s["kv_bytes_full"] == L * BATCH * K * (max(LENGTHS) + NEW) * H * 2 * ITEMSIZE
    assert s["recompiles"] == 0
    graded = [float(row["correct"]) for row in rows if row["correct"] is not None]
    assert s["pass_at_1"] == sum(graded) / len(graded)
    low, high = interval([graded[:2], graded[2:]])
    assert s["pass_at_1_low"] == low <= s["pass_at_1"] <= high == s["pass_at_1_high"]


def test_trace(made):
    by_sample = {(row["id"], row["sample"]): row for row in made.samples}
    events = {key: [] for key in by_sample}
    for row in made.trace:
        assert_fields(row, TRACE)
        assert row["granularity"] == made.granularity
        events[row["id"], row["sample"]].append(row)
        sets = [row["kept"]] if made.granularity == "shared" else [head for layer in row["kept"] for head in layer]
        if made.granularity == "head":
            assert [len(layer) for layer in row["kept"]] == [K] * L
        for kept in sets:
            assert len(kept) == RETAIN
            assert all(a < b for a, b in itertools.pairwise(kept))
            assert kept[0] >= 0
            assert kept[-WINDOW:] == list(range(row["position"] - WINDOW + 1, row["position"] + 1))
    for key, rows in events.items():
        sample = by_sample[key]
        assert [row["event"] for row in rows] == list(range(sample["evictions"]))
        expected = [BUDGET - 1 + event * (BUDGET - RETAIN) for event in range(len(rows))]
        assert [row["position"] for row in rows] == expected
        assert all(p < sample["prompt_tokens"] + len(sample["token_ids"]) for p in expected)


def test_scores_of_the_trace_say_what_was_kept(made):
    before = {}
    for row in made.trace:
        shared = made.granularity == "shared"
        nested = [([row["kept"]], [row["scores"]])] if shared else zip(row["kept"], row["scores"], strict=True)
        for s, (kept, scores) in enumerate((k, x) for layer in nested for k, x in zip(*layer, strict=True)):
            key = row["id"], row["sample"], s
            last, there = before.get(key, (-1, []))
            there = [*there, *range(last + 1, row["position"] + 1)]
            assert [p for p, x in zip(there, scores, strict=True) if x is None] == there[-WINDOW:]
            free = sorted((x, p) for p, x in zip(there, scores, strict=True) if x is not None)
            assert sorted({*there[-WINDOW:], *(p for _, p in free[-(RETAIN - WINDOW) :])}) == kept
            before[key] = row["position"], kept


def test_quiet_says_nothing_and_the_same_seed_is_byte_identical(made, run, tmp_path):
    if made.granularity == "head":
        pytest.skip("once is enough")
    result = run(*made.arguments, "--trace", "--out", tmp_path / "again")
    assert result == (0, "", "")
    for name in ("samples.jsonl", "trace.jsonl"):
        assert (tmp_path / "again" / name).read_bytes() == (made.out / name).read_bytes()
    before = (made.out / "summary.json").read_bytes()
    assert run(*made.arguments, "--trace", "--out", made.out) == (0, "", "")
    assert (made.out / "summary.json").read_bytes() == before, "a finished run is left as it is"
    refused = run(*made.arguments, "--trace", "--out", made.out, "--seed", "4")
    assert refused.code == 2
    assert refused.err.startswith(f"error: {made.out}: was made with another config (seed 3, now 4); give a new --out")


def test_mean_slots(made):
    """The slots that a query meets, its own token's included, over the decode steps."""
    for row in made.samples:
        occupied, met = row["prompt_tokens"], []
        for _ in row["token_ids"][1:]:
            occupied = (RETAIN if occupied == BUDGET else occupied) + 1
            met.append(occupied)
        assert row["mean_slots"] == round(sum(met) / len(met), 3)
