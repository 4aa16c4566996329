"""One run, end to end: load the model, read the task, decode within the budget, grade, write what came out."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from rich.console import RenderableType

from converters.config import read_config
from jkv import termination
from jkv.auto_mesh import AUTO, mesh_words, settle_mesh, spread_over
from jkv.config import ModelConfig
from jkv.engine import Engine, Request, Timings
from jkv.errors import UserError
from jkv.grader import Grader
from jkv.hosts import Hosts, here, need_out, rows_of
from jkv.load import Loaded, known_config, load, locate
from jkv.meeting import Meeting
from jkv.mesh import place_weights
from jkv.output import RunDirectory
from jkv.placement import fetch
from jkv.policies import Context, Policy
from jkv.policies.code import code_digest
from jkv.recording import Recorder, follow
from jkv.run_config import DecodeConfig
from jkv.sampling import make_sampler
from jkv.show import LiveProgress, Screen, busy, human_bytes, summary_table
from jkv.summary import Facts, summarise
from jkv.tasks import Problem, load_task
from jkv.tasks.marking import Marking
from jkv.together import Ending, all_of, share_of

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
    """The mesh that ``--mesh`` names, or of several hosts that of this one's replica; said on stderr if it was chosen
    here. model: of ``config``, if at hand."""
    if config.mesh is None:
        return None
    model = model or read_config(locate(config.model))
    slots = config.budget or new_tokens_of(config)
    hosts = here()
    mesh = settle_mesh(
        config.mesh, model, rows=config.batch_size, slots=slots, dtype=default_dtype(config.dtype),
        weights=config.weights, kv=config.kv, hosts=hosts,
    )  # fmt: skip
    if config.mesh == AUTO:
        words, kind = mesh_words(mesh, spread_over(hosts, mesh)), jax.local_devices()[0].device_kind
        text = f"mesh: {words}, of {jax.device_count()} x {kind}"
        Screen(stderr=True, quiet=config.quiet, highlight=False).print(text, soft_wrap=True)
    return mesh


def run(config: DecodeConfig, **known: Any) -> dict[str, Any] | None:
    """Run a config; returns the summary, which is also in ``--out``. Raises UserError for what a user can mend.

    Of several hosts the first returns it; the others return None when it is written.  known: as for ``start``.
    """
    with tempfile.TemporaryDirectory() as scratch:
        if (hosts := here()).count == 1:
            return start(config, pathlib.Path(config.out or scratch), **known).summary()
        out = need_out(config.out)
        config = dataclasses.replace(config, quiet=config.quiet or not hosts.first)
        meeting = Meeting(hosts, out, [out], config)
        summary = start(config, out, meeting=meeting, **known).summary()
        meeting.end()
        return summary


def start(
    config: DecodeConfig,
    out: pathlib.Path,
    *,
    loaded: Loaded | None = None,
    problems: list[Problem] | None = None,
    grader: Grader | None = None,
    engines: "Engines | None" = None,
    above: RenderableType | None = None,
    show: bool = True,
    screen: Screen | None = None,
    meeting: Meeting | None = None,
) -> Ending:
    """Decode a config's samples, or this host's share of them, into ``out``: all but summing up.

    loaded, problems, grader, engines: the model, the task's problems, a grader and an earlier run's programs, where
    they are at hand.
    above: shown over the progress bar.  show: print a thought and the closing table when done.  screen: where to
    (default: stdout, unless the run is quiet).  meeting: of several hosts.
    """
    # Whatever can be refused without the weights is refused before they are read.
    if loaded is None:
        known_config(config.model)
    policy = config.make_policy()
    config.retention(policy, longest=1)
    dtype = default_dtype(config.dtype)
    mesh = mesh_of(config, None if loaded is None else loaded.config)
    hosts = spread_over(Hosts() if meeting is None else meeting.hosts, mesh)
    rows = rows_of(config.batch_size, hosts)
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
    _check_memory(loaded.config.kv_bytes(rows, rule.budget, itemsize, config.kv))
    with _mendable():
        engine = (engines or Engines()).get(
            (_programs(config), rule),
            loaded.model,
            policy=policy,
            rule=rule,
            batch_size=rows,
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
    requests = [r for _, r in pairs]
    identity = _identity(config, policy, dtype, (nnx.state(loaded.model), parameters), problems)
    # Of the buffer that the full cache would take, in the same form.
    kv_bytes_full = loaded.config.kv_bytes(config.batch_size, longest, engine.dtype.itemsize, config.kv)
    words, device, traces = mesh_words(mesh, hosts), jax.local_devices()[0].device_kind, engine.traces
    kv_bytes = engine.kv_bytes * hosts.replicas
    closing = screen or (Screen(highlight=False) if show and not config.quiet else None)
    to_show: list[Recorder] = []

    def sum_up(directory: RunDirectory) -> dict[str, Any]:
        facts = Facts(kv_bytes, kv_bytes_full, max(traces["decode"] - 1, 0), device, words)
        summary = summarise(config, policy, rule, directory.samples, directory.timings, facts)
        directory.write_summary(summary)
        if closing is not None:
            for recorder in to_show:
                recorder.show_thought(closing, directory.samples)
            closing.print(summary_table(summary))
        return summary

    if meeting is None:
        share = all_of(out, identity, requests, sum_up, trace=config.trace)
    else:
        share = share_of(meeting, hosts, out, identity, requests, sum_up, trace=config.trace, quiet=config.quiet)
    live = LiveProgress(
        total=share.total, slots=rows * rule.budget, kv_bytes=kv_bytes, kv_bytes_full=kv_bytes_full,
        quiet=config.quiet, above=above,
    )  # fmt: skip
    if share.notice:
        live.console.print(share.notice, soft_wrap=True)
    of_host = f" by {hosts}" if hosts.count > 1 else ""
    kept = f"and kept in {config.out}: run the same command to continue" if config.out else "but only --out keeps them"
    so_far = lambda: f"{share.done} of {share.total} samples are finished{of_host} {kept}"
    if hosts.index != hosts.leader:
        so_far = lambda: f"{hosts} helped host {hosts.leader}, which keeps samples: run the same command to continue"
    try:
        with termination.saying(so_far), live, _mendable(), Marking(grader) as marking:
            live.sample_done(share.done)
            termination.renew()
            if share.requests and share.directory is None:  # another host of this replica writes
                follow(engine, share.requests, trace=config.trace)
            elif share.requests and share.directory is not None:
                recorder = Recorder(engine, problems, loaded.tokenizer, share.directory, marking, trace=config.trace)
                recorder.decode(share.requests, live, patience=PATIENCE_S)
                to_show += [recorder] if closing is not None else []
    except BaseException:
        share.close()
        raise
    return share.decoded()


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


def identity_of(config: DecodeConfig, dtype: str) -> dict[str, Any]:
    """What a config alone says of ``_identity``."""
    identity = {**dataclasses.asdict(config), "dtype": dtype}
    # A mesh changes nothing but rounding; what --weights changes is in the weights themselves.
    for name in ("out", "quiet", "mesh", "weights"):
        del identity[name]
    if config.kv is None:  # said where it is something, so that earlier runs can go on
        del identity["kv"]
    return identity


def _identity(
    config: DecodeConfig, policy: Policy, dtype: str, arrays: Any, problems: Sequence[Problem]
) -> dict[str, Any]:
    """What must be the same to continue a run: the config, the prompts and answers themselves, the weights (the
    model's and the policy's), and the code of a policy of one's own."""
    identity = identity_of(config, dtype)
    # A grading is named where it isn't the plain one, so that earlier runs can go on.
    prompts = [(p.id, p.prompt_ids, p.answer, *(() if p.grading == "exact" else (p.grading,))) for p in problems]
    prompts = json.dumps(prompts).encode()
    weights = hashlib.sha256()
    for leaf in jax.tree.leaves(arrays):
        # Any training changes a matrix's first row; reading all of a large model would take its time.
        weights.update(fetch(leaf if leaf.ndim < 2 else leaf[0]).tobytes())
    code = code_digest(type(policy))
    own = {} if code is None else {"code": code}
    return {**identity, **own, "problems": _digest(hashlib.sha256(prompts)), "weights": _digest(weights)}


def _digest(sha) -> str:
    return sha.hexdigest()[:16]
