"""One run, end to end: load the model, read the task, decode within the budget, grade, write what came out."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from rich.console import RenderableType

from converters.config import read_config
from jkv.auto_mesh import AUTO, mesh_words, settle_mesh
from jkv.config import ModelConfig
from jkv.engine import Completion, Engine, Eviction, Progress, Request, Timings
from jkv.errors import UserError
from jkv.grader import Grader
from jkv.load import Loaded, load, locate
from jkv.mesh import place_weights
from jkv.output import RunDirectory
from jkv.policies import Context, Policy, Retention
from jkv.report.accuracy import accuracy
from jkv.run_config import DecodeConfig
from jkv.sampling import make_sampler
from jkv.show import LiveProgress, Screen, busy, human_bytes, short, summary_table, thought
from jkv.tasks import Problem, load_task
from jkv.tasks.grading import opens_thought
from jkv.tasks.marking import Marking
from jkv.text import pieces

DEMO_NEW_TOKENS, NEW_TOKENS = 320, 16384
# Seconds that a run which is broken off waits for the grades of samples that are finished.
PATIENCE_S = 5.0


def default_dtype(dtype: str | None) -> str:
    """The dtype asked for, or what suits the platform."""
    return dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")


def new_tokens_of(config: DecodeConfig) -> int:
    """New tokens a completion at most."""
    return config.max_new_tokens or (DEMO_NEW_TOKENS if config.task == "demo" else NEW_TOKENS)


def mesh_of(config: DecodeConfig, model: ModelConfig | None = None) -> Mesh | None:
    """The mesh that ``--mesh`` names, said on stderr where it was chosen here. model: of ``config``, if at hand."""
    if config.mesh is None:
        return None
    model = model or read_config(locate(config.model))
    slots = config.budget or new_tokens_of(config)
    mesh = settle_mesh(
        config.mesh, model, rows=config.batch_size, slots=slots, dtype=default_dtype(config.dtype),
        weights=config.weights, kv=config.kv,
    )  # fmt: skip
    if config.mesh == AUTO:
        text = f"mesh: {mesh_words(mesh)}, of {jax.device_count()} x {jax.devices()[0].device_kind}"
        Screen(stderr=True, quiet=config.quiet, highlight=False).print(text, soft_wrap=True)
    return mesh


def run(
    config: DecodeConfig,
    *,
    loaded: Loaded | None = None,
    problems: list[Problem] | None = None,
    grader: Grader | None = None,
    engines: "Engines | None" = None,
    above: RenderableType | None = None,
    show: bool = True,
) -> dict[str, Any]:
    """Run a config; returns the summary, which is also in ``--out``. Raises UserError for what a user can mend.

    loaded, problems, grader, engines: the model, the task's problems, a grader and an earlier run's programs, where
    they are at hand.
    above: shown over the progress bar.  show: print a thought and the closing table when done.
    """
    policy = config.make_policy()
    # Whatever can be refused without the weights is refused before they are read.
    config.retention(policy, longest=1)
    dtype = default_dtype(config.dtype)
    mesh = mesh_of(config, None if loaded is None else loaded.config)
    shard = None if mesh is None else place_weights(mesh)
    with busy(f"loading {config.model}", quiet=config.quiet):
        loaded = loaded or load(config.model, dtype, shard, config.weights)
        if problems is None:
            problems = load_task(config.task, loaded, limit=config.limit)
        policy, parameters = policy.bind(context_of(config, loaded))
    new_tokens = new_tokens_of(config)
    longest = max(len(p.prompt_ids) for p in problems) + new_tokens
    rule = config.retention(policy, longest=longest)
    itemsize = np.dtype(jnp.dtype(dtype)).itemsize
    _check_memory(loaded.config.kv_bytes(config.batch_size, rule.budget, itemsize, config.kv))
    with _mendable():
        engine = (engines or Engines()).get(
            (_programs(config), rule),
            loaded.model,
            policy=policy,
            rule=rule,
            batch_size=config.batch_size,
            sampler=make_sampler(config.temperature, config.top_p, config.top_k),
            eos_ids=() if config.ignore_eos else loaded.config.eos_ids,
            seed=config.seed,
            implementation=config.implementation,
            parameters=parameters,
            record_scores=config.trace,
            kv=config.kv,
            mesh=mesh,
        )
    pairs = [(p, Request(p.id, p.prompt_ids, new_tokens, sample)) for p in problems for sample in range(config.samples)]
    for problem, request in pairs:
        engine.check(request, problem.where)
    with tempfile.TemporaryDirectory() as scratch:
        identity = _identity(config, dtype, (nnx.state(loaded.model), parameters), problems)
        directory = RunDirectory(pathlib.Path(config.out or scratch), identity, trace=config.trace)
        try:
            with _mendable(), Marking(grader) as marking:
                work = _Run(
                    config, loaded, problems, policy, rule, engine, directory, marking, longest, show, above,
                    mesh_words(mesh),
                )  # fmt: skip
                return work.finish([r for _, r in pairs])
        except KeyboardInterrupt:
            done = f"{len(directory.samples)} of {len(pairs)} samples are finished"
            kept = (
                f"and kept in {config.out}: run the same command to continue"
                if config.out
                else "but only --out keeps them"
            )
            raise KeyboardInterrupt(f"{done} {kept}") from None
        finally:
            directory.close()


class Engines:
    """Keeps the last engine, so that runs which differ in task alone share its programs."""

    def __init__(self):
        self._key, self._engine = None, None

    def get(self, key: Any, *arguments: Any, **named: Any) -> Engine:
        """The engine of ``key``, made from the arguments unless it is the last one, and its clocks at zero."""
        if self._engine is None or key != self._key:
            self._engine = None  # its buffer makes room for the next
            self._key, self._engine = key, Engine(*arguments, **named)
        self._engine.timings = Timings()
        return self._engine


def _programs(config: DecodeConfig) -> str:
    """What an engine depends on, beside the budget."""
    elsewhere = ("task", "limit", "samples", "max_new_tokens", "out", "trace", "quiet")
    return repr({name: value for name, value in dataclasses.asdict(config).items() if name not in elsewhere})


def _check_memory(kv_bytes: int) -> None:
    """Refuse a buffer that is larger than the machine. A CPU allocates it all the same and is killed for it."""
    if jax.default_backend() == "cpu" and hasattr(os, "sysconf"):
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if kv_bytes > there:
            what = f"the KV buffer takes {human_bytes(kv_bytes)}, the machine has {human_bytes(there)}"
            raise UserError(what, mend="lower --budget, --batch-size or (policy full) --max-new-tokens")


@contextlib.contextmanager
def _mendable():
    """Failures below the front door that a user can mend, as UserErrors: no kernel here, not enough memory."""
    try:
        yield
    except NotImplementedError as error:
        raise UserError(str(error), where="--implementation", mend="auto takes what there is") from None
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            reason = next(iter(str(error).splitlines()), "")
            mend = "lower --batch-size or --budget; with --out, finished samples are kept"
            raise UserError(f"out of memory ({reason[:200]})", mend=mend) from None
        raise


def context_of(config: DecodeConfig, loaded: Loaded) -> Context:
    """What the config's policy is bound to."""
    predictor = None if config.predictor is None else pathlib.Path(config.predictor).expanduser()
    return Context(loaded.config, loaded.tokenizer, loaded.path, predictor, loaded.model.dtype)


def _identity(config: DecodeConfig, dtype: str, arrays: Any, problems: Sequence[Problem]) -> dict[str, Any]:
    """What must be the same to continue a run: the config, the prompts and answers themselves, and the weights (the
    model's and the policy's)."""
    identity = {**dataclasses.asdict(config), "dtype": dtype}
    # A mesh changes nothing but rounding; what --weights changes is in the weights themselves.
    for name in ("out", "quiet", "mesh", "weights"):
        del identity[name]
    if config.kv is None:  # said where it is something, so that earlier runs can go on
        del identity["kv"]
    # A grading is named where it isn't the plain one, so that earlier runs can go on.
    prompts = [(p.id, p.prompt_ids, p.answer, *(() if p.grading == "exact" else (p.grading,))) for p in problems]
    prompts = json.dumps(prompts).encode()
    weights = hashlib.sha256()
    for leaf in jax.tree.leaves(arrays):
        # Any training changes a matrix's first row; reading all of a large model would take its time.
        weights.update(np.asarray(leaf if leaf.ndim < 2 else leaf[0]).tobytes())
    return {**identity, "problems": _digest(hashlib.sha256(prompts)), "weights": _digest(weights)}


def _digest(sha) -> str:
    return sha.hexdigest()[:16]


@dataclasses.dataclass
class _Run:
    config: DecodeConfig
    loaded: Loaded
    problems: list[Problem]
    policy: Policy
    rule: Retention
    engine: Engine
    directory: RunDirectory
    marking: Marking
    longest: int
    show: bool
    above: RenderableType | None
    mesh: str | None

    def finish(self, requests: Sequence[Request]) -> dict[str, Any]:
        """Decode what is not finished yet, then sum up."""
        config, engine, directory = self.config, self.engine, self.directory
        self.before = {name: directory.timings.get(name, 0.0) for name in ("wall", "compile", "decode", "steps")}
        self.by_id = {p.id: p for p in self.problems}
        self.shown: Completion | None = None
        strangers = directory.finished - {(r.id, r.sample) for r in requests}
        if strangers:
            mend = "delete its line, or give a new --out"
            raise UserError(
                f"has a sample of {min(strangers)[0]!r}, which the task has not", where=config.out or "", mend=mend
            )
        todo = [r for r in requests if (r.id, r.sample) not in directory.finished]
        kv_bytes = engine.kv_bytes
        live = LiveProgress(
            total=len(requests),
            slots=config.batch_size * self.rule.budget,
            kv_bytes=kv_bytes,
            kv_bytes_full=self._full_bytes(),
            quiet=config.quiet,
            above=self.above,
        )
        if directory.notice:
            live.console.print(directory.notice, soft_wrap=True)
        with live:
            live.sample_done(len(requests) - len(todo))
            if todo:
                self.marking.expect([self.by_id[r.id] for r in todo])
                live.compiling()
                engine.compile(len(r.prompt_ids) for r in todo)
                live.start_clock()
                self._decode(todo, live)
        summary = self._summary(kv_bytes)
        if len(directory.samples) and self.policy.evicts and self._must_evict() and not summary["evictions"]:
            raise RuntimeError("sequences outgrew the budget and no eviction was counted: the figures can't be trusted")
        directory.write_summary(summary)
        if self.show and not config.quiet:
            console = Screen(highlight=False)
            if self.shown is not None:
                console.print(self._thought(self.shown, styled=console.is_terminal and not console.is_dumb_terminal))
            console.print(summary_table(summary))
        return summary

    def _decode(self, todo: list[Request], live: LiveProgress) -> None:
        started = time.perf_counter()
        # A sample's time is that of its last token; waiting for a grade is no decoding.
        ended: dict[tuple[str, int], dict[str, float]] = {}

        def keep(within: float | None) -> None:
            for row in self.marking.graded(within):
                self.directory.add_sample(row, ended.pop((row["id"], row["sample"])))
                live.sample_done()

        try:
            for event in self.engine.run(todo, trace=self.config.trace):
                match event:
                    case Progress():
                        live.tick(event)
                    case Eviction():
                        self.directory.add_trace(self._trace_row(event))
                    case Completion():
                        ended[event.request.id, event.request.sample] = self._timings(time.perf_counter() - started)
                        problem = self.by_id[event.request.id]
                        self.marking.add(self._sample_row(event), problem, thinking=self._thinking(problem))
                        if self.shown is None or (event.evictions and not self.shown.evictions):
                            self.shown = event
                keep(0.0)
        except BaseException:
            keep(PATIENCE_S)
            raise
        keep(None)

    def _timings(self, wall: float) -> dict[str, float]:
        """Seconds and steps of all sessions so far."""
        spent = self.engine.timings
        now = {"wall": wall, "compile": spent.compile, "decode": spent.decode, "steps": spent.steps}
        return {name: value + self.before[name] for name, value in now.items()}

    def _thinking(self, problem: Problem) -> bool:
        """Whether the prompt has begun the thought that the completion is to end."""
        tokenizer = self.loaded.tokenizer
        return tokenizer is not None and opens_thought(tokenizer.decode(problem.prompt_ids))

    def _sample_row(self, done: Completion) -> dict[str, Any]:
        """The sample, yet without its answer and grade."""
        tokenizer = self.loaded.tokenizer
        text = "" if tokenizer is None else tokenizer.decode(done.token_ids, skip_special_tokens=True)
        # With these a trace can be looked at where neither the tokenizer nor the task is at hand.
        more = {"pieces": pieces(tokenizer, (*done.request.prompt_ids, *done.token_ids))} if self.config.trace else {}
        steps = len(done.token_ids) - 1
        return {
            "id": done.request.id,
            "sample": done.request.sample,
            "prompt_tokens": len(done.request.prompt_ids),
            "token_ids": done.token_ids,
            "text": text,
            "finish": done.finish,
            "evictions": done.evictions,
            "peak_slots": done.peak_slots,
            "mean_slots": round(done.slot_steps / steps, 3) if steps else float(done.peak_slots),
            **more,
        }

    def _trace_row(self, event: Eviction) -> dict[str, Any]:
        return {
            "id": event.request.id,
            "sample": event.request.sample,
            "event": event.event,
            "position": event.position,
            "granularity": self.rule.granularity,
            "kept": event.kept,
            **({} if event.scores is None else {"scores": plain_scores(event.scores)}),
        }

    def _full_bytes(self) -> int:
        """Of the buffer that the full cache would take, in the same form."""
        itemsize = self.engine.dtype.itemsize
        return self.loaded.config.kv_bytes(self.config.batch_size, self.longest, itemsize, self.config.kv)

    def _must_evict(self) -> bool:
        """Whether a finished sample put more tokens into the buffer than it has slots."""
        return any(r["prompt_tokens"] + len(r["token_ids"]) - 1 > self.rule.budget for r in self.directory.samples)

    def _summary(self, kv_bytes: int) -> dict[str, Any]:
        timings, rule = self.directory.timings, self.rule
        # In an order of their own, so that no mean's last digit depends on what finished first.
        rows = sorted(self.directory.samples, key=lambda row: (row["id"], row["sample"]))
        tokens = sum(len(row["token_ids"]) for row in rows)
        return {
            "model": self.config.model,
            "policy": self.policy.name,
            "budget": rule.budget,
            "retain": rule.retain,
            "window": rule.window,
            "sinks": rule.sinks,
            "pin_prompt": rule.pin_prompt,
            "granularity": rule.granularity,
            "options": dataclasses.asdict(self.policy) if dataclasses.is_dataclass(self.policy) else {},
            "batch_size": self.config.batch_size,
            "samples": len(rows),
            "ungraded": sum("ungraded" in row for row in rows),
            **accuracy(rows),
            "truncation_rate": float(np.mean([row["finish"] == "length" for row in rows])),
            "mean_tokens": tokens / len(rows),
            "tokens": tokens,
            "wall_s": timings["wall"],
            "compile_s": timings["compile"],
            "tps": tokens / timings["wall"],
            "tps_paper": self.config.batch_size * timings["steps"] / timings["decode"] if timings["decode"] else None,
            "evictions": sum(row["evictions"] for row in rows),
            "peak_slots": max(row["peak_slots"] for row in rows),
            "mean_slots": float(np.mean([row["mean_slots"] for row in rows])),
            "kv_bytes": kv_bytes,
            "kv_bytes_full": self._full_bytes(),
            "recompiles": max(self.engine.traces["decode"] - 1, 0),
            "device": jax.devices()[0].device_kind,
            "mesh": self.mesh,
            "weights": self.config.weights,
            "kv": self.config.kv,
        }

    def _thought(self, done: Completion, *, styled: bool):
        kept = done.kept
        if self.rule.granularity == "head":  # a token is gone when no head has it any more
            kept = sorted({p for layer in kept for head in layer for p in head})
        reference = self.by_id[done.request.id].answer
        row = next(
            r for r in self.directory.samples if (r["id"], r["sample"]) == (done.request.id, done.request.sample)
        )
        title = f"{short(done.request.id)}, sample {done.request.sample}"
        if reference is not None:
            said = "no answer" if row["answer"] is None else f"answer {short(row['answer'])}"
            wrong = f"wrong, expected {short(reference)}"
            grade = {True: "right", False: wrong, None: f"ungraded ({row.get('ungraded')})"}[row["correct"]]
            title += f": {said}, {grade}"
        return thought(self.loaded.tokenizer, done.request.prompt_ids, done.token_ids, kept, title=title, styled=styled)


def plain_scores(scores: np.ndarray) -> list:
    """Scores as JSON: nested lists of numbers that give the same float32 again; None for what was protected (+inf)."""
    if scores.ndim > 1:
        return [plain_scores(part) for part in scores]
    return [None if score == np.inf else float(f"{score:.9g}") for score in scores.tolist()]
