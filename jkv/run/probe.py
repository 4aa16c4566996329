"""The memory probe, end to end: read each probe within the budget, draw one token, compare it, write the results."""

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from rich.progress import Progress

from jkv.config.probe import ProbeConfig
from jkv.config.sweep import policy_entry
from jkv.demo.probe import Probe, probes
from jkv.engine.engine import Engine
from jkv.engine.events import Completion, Request
from jkv.errors import UserError
from jkv.load import Loaded, load
from jkv.policies import Context, Full, Policy, Retention
from jkv.policies.options import make_policy, run_policy_file
from jkv.report.recall import Recall, write_recall
from jkv.terminal.screen import Screen, busy


def run_probe(config: ProbeConfig) -> list[Recall]:
    """Run the probe and write its results to ``--out`` after each policy.

    Returns:
        The recall of the full cache, then of each policy.

    Raises:
        UserError: anything that a user can mend.
        RuntimeError: the engine counted another number of evictions than `evictions_between` expects.
    """
    for file in config.register or ():
        run_policy_file(file)
    with busy(f"loading {config.model}", quiet=False):
        loaded = load(config.model, "float32")
    asked = probes(config.probes, seed=config.seed)
    tokens = [_encode(loaded, probe) for probe in asked]
    full = Retention(600, 600)  # no probe is so long
    contestants: list[tuple[str, Policy, Retention, Any]] = [("full", Full(), full, ())]
    for entry in config.policies:
        label, policy, rule = _contestant(config, entry)
        bound, parameters = policy.bind(Context(loaded.config, loaded.tokenizer, loaded.path))
        for ids in tokens:
            rule.check_prompt(len(ids), f"--policies {label}")
        contestants.append((label, bound, rule, parameters))

    between = np.array([evictions_between(p.fact, p.length, config.budget, config.retain) for p in asked])
    results = []
    assert config.out is not None  # ProbeConfig refuses that
    out = pathlib.Path(config.out).expanduser()
    with Progress(console=Screen(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=len(contestants) * len(asked))
        for label, policy, rule, parameters in contestants:
            bar.update(task, description=label)
            right = np.zeros(len(asked), bool)
            engine = Engine(
                loaded.model, policy=policy, rule=rule, batch_size=1, eos_ids=(), seed=config.seed,
                parameters=parameters,
            )  # fmt: skip
            for index, done in _read(engine, asked, tokens):
                if policy.evicts:
                    expected = evictions_between(-1, asked[index].length, rule.budget, rule.retain)
                    if done.evictions != expected:
                        raise RuntimeError(f"{label}: {done.evictions} evictions, expected {expected}")
                right[index] = loaded.tokenizer.decode(done.token_ids).strip() == asked[index].value
                bar.advance(task)
            results.append(Recall(label, between, right))
            write_recall(out, results, config)
    return results


def evictions_between(fact: int, length: int, budget: int, retain: int) -> int:
    """Evictions between the moment a token is put into the buffer and the end of the text.

    A row is full when ``budget`` tokens are in it and must evict before the next; after that it evicts once every
    ``budget - retain`` tokens.

    Args:
        fact: position of the token; -1 counts all evictions.
        length: tokens of the text.
        budget: slots of the row.
        retain: slots occupied right after an eviction.
    """
    first = budget if fact < budget else budget + -(-(fact + 1 - budget) // (budget - retain)) * (budget - retain)
    return 0 if first >= length else 1 + (length - 1 - first) // (budget - retain)


def _encode(loaded: Loaded, probe: Probe) -> tuple[int, ...]:
    if loaded.tokenizer is None or "<think>" not in loaded.tokenizer.get_vocab():
        mend = "use demo-llama or demo-qwen"
        raise UserError("the probe is written in the demo models' vocabulary, which this model lacks", mend=mend)
    ids = tuple(loaded.tokenizer.encode(probe.text, add_special_tokens=False))
    assert len(ids) == probe.length
    return ids


def _contestant(config: ProbeConfig, entry: Any) -> tuple[str, Policy, Retention]:
    """The name, the policy and the budget of an entry of ``--policies``."""
    label, own = policy_entry(entry)
    policy = make_policy(own["policy"], own.get("options") or {})
    if not policy.evicts:
        raise UserError("evicts nothing; the full cache is there anyway", where=f"policies: {label}")
    window = own.get("window", config.window)
    sinks = own.get("sinks", config.sinks)
    rule = Retention(
        budget=config.budget,
        retain=config.retain,
        window=policy.default_window(config.budget, retain=config.retain, ratio=None) if window is None else window,
        sinks=policy.sinks if sinks is None else sinks,
        pin_prompt=own.get("pin_prompt", config.pin_prompt),
        granularity=own.get("granularity", config.granularity),
        long_prompts=True,
    )
    if rule.retain == rule.budget:
        raise UserError("leaves nothing to evict", where="--retain", mend=f"give at most {rule.budget - 1}")
    return label, policy, rule


def _read(engine: Engine, asked: list[Probe], tokens: list[tuple[int, ...]]) -> Iterator[tuple[int, Completion]]:
    """Each probe's completion of one token, with the probe's index, in the order of finishing."""
    index_of = {probe.id: index for index, probe in enumerate(asked)}
    for event in engine.run([Request(p.id, ids, 1) for p, ids in zip(asked, tokens, strict=True)]):
        if isinstance(event, Completion):
            yield index_of[event.request.id], event
