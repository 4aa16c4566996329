"""Before a run decodes. `check` refuses what can be refused without reading weights; `open_run` then loads the model
and the task and makes the engine."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from jkv.config.decode import DecodeConfig
from jkv.distributed.choose_mesh import AUTO, mesh_text, settle_mesh, spread_over
from jkv.distributed.hosts import Hosts, here, rows_per_replica
from jkv.distributed.weights import place_weights
from jkv.engine.engine import Engine
from jkv.engine.events import Request
from jkv.engine.sampling import make_sampler
from jkv.load import Loaded, default_dtype, known_config, load, model_config
from jkv.models.config import ModelConfig
from jkv.policies import Context, Policy, Retention
from jkv.run.engines import Engines, engine_key
from jkv.run.identity import run_identity
from jkv.run.limits import check_memory, device_errors_as_user_errors
from jkv.run.summary import Facts
from jkv.tasks import Problem, load_task
from jkv.terminal.screen import Screen, busy


@dataclasses.dataclass(frozen=True)
class AtHand:
    """What this process has loaded already, so that a run need not read it again. None: the run reads or makes its own.

    Attributes:
        loaded: the model.
        problems: of the task.
        engines: the engine of the run before.
    """

    loaded: Loaded | None = None
    problems: list[Problem] | None = None
    engines: Engines | None = None


@dataclasses.dataclass(frozen=True)
class Checked:
    """A run whose configuration is checked, and of which no weights are read.

    Attributes:
        policy: with its options, not yet bound to a model.
        dtype: of weights, activations and buffer, unless they are int8.
        mesh: the devices of this host's replica of the model; None for one device.
        hosts: those that share the run, and how many of them hold the model together.
        rows: rows of the batch on this host's replica.
    """

    policy: Policy
    dtype: str
    mesh: Mesh | None
    hosts: Hosts
    rows: int


@dataclasses.dataclass(frozen=True)
class Opened:
    """A run that is ready to decode.

    Attributes:
        loaded: the model.
        problems: the task's.
        policy: bound to the model.
        rule: how many slots stay at an eviction and which tokens are never evicted, with all defaults filled in.
        engine: made for them.
        requests: one for each sample of each problem, the finished ones included.
        identity: what must be the same to continue the run.
        facts: what its summary says besides samples and times.
    """

    loaded: Loaded
    problems: Sequence[Problem]
    policy: Policy
    rule: Retention
    engine: Engine
    requests: list[Request]
    identity: dict[str, Any]
    facts: Facts


def check(config: DecodeConfig, loaded: Loaded | None, hosts: Hosts) -> Checked:
    """Refuse what can be refused before weights are read, which takes minutes for a large model.

    Args:
        config: what to run.
        loaded: the model, if it is loaded already.
        hosts: those that share the run.

    Raises:
        UserError: there is no such model or policy, or the budget or the mesh is impossible.
    """
    if loaded is None:
        known_config(config.model)
    policy = config.make_policy()
    config.retention(policy, longest=1)
    mesh = run_mesh(config, None if loaded is None else loaded.config)
    hosts = spread_over(hosts, mesh)
    return Checked(policy, default_dtype(config.dtype), mesh, hosts, rows_per_replica(config.batch_size, hosts))


def open_run(config: DecodeConfig, checked: Checked, at_hand: AtHand) -> Opened:
    """Load the model and the task, make the engine, and check every request.

    Args:
        config: what to run.
        checked: what `check` has made of it.
        at_hand: what this process has loaded already.

    Raises:
        UserError: the checkpoint is damaged, the task can't be read, a prompt doesn't fit the budget, or there is too
            little memory.
    """
    mesh, rows = checked.mesh, checked.rows
    with busy(f"loading {config.model}", quiet=config.quiet):
        shard = None if mesh is None else place_weights(mesh)
        loaded = at_hand.loaded or load(config.model, checked.dtype, shard, config.weights)
        problems = at_hand.problems
        if problems is None:
            problems = load_task(config.task, loaded.tokenizer, model=loaded.name, limit=config.limit)
        policy, parameters = checked.policy.bind(policy_context(config, loaded))
    longest = max(len(p.prompt_ids) for p in problems) + config.new_tokens
    rule = config.retention(policy, longest=longest)
    itemsize = np.dtype(jnp.dtype(checked.dtype)).itemsize
    check_memory(loaded.config.kv_bytes(rows, rule.budget, itemsize, config.kv))

    def make_engine() -> Engine:
        """A new engine for this run."""
        return Engine(
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

    with device_errors_as_user_errors():
        engine = (at_hand.engines or Engines()).get(engine_key(config, rule), make_engine)
    requests = []
    for problem in problems:
        for sample in range(config.samples):
            requests.append(Request(problem.id, problem.prompt_ids, config.new_tokens, sample))
            engine.check(requests[-1], problem.where)
    facts = Facts(
        kv_bytes=engine.kv_bytes * checked.hosts.replicas,
        kv_bytes_full=loaded.config.kv_bytes(config.batch_size, longest, engine.dtype.itemsize, config.kv),
        device=jax.local_devices()[0].device_kind,
        mesh=mesh_text(mesh, checked.hosts),
    )
    identity = run_identity(config, policy, checked.dtype, (nnx.state(loaded.model), parameters), problems)
    return Opened(loaded, problems, policy, rule, engine, requests, identity, facts)


def run_mesh(config: DecodeConfig, model: ModelConfig | None = None) -> Mesh | None:
    """The mesh that ``--mesh`` names. One that ``auto`` has chosen is printed on stderr.

    Args:
        config: the run's.
        model: the config of its model; read if it isn't given.

    Returns:
        The mesh, of several hosts that of this host's replica of the model; None without ``--mesh``.

    Raises:
        UserError: model or batch can't be divided so, or there are fewer devices.
    """
    if config.mesh is None:
        return None
    model = model or model_config(config.model)
    hosts = here()
    mesh = settle_mesh(
        config.mesh, model, rows=config.batch_size, slots=config.budget or config.new_tokens,
        dtype=default_dtype(config.dtype), weights=config.weights, kv=config.kv, hosts=hosts,
    )  # fmt: skip
    if config.mesh == AUTO:
        sizes, kind = mesh_text(mesh, spread_over(hosts, mesh)), jax.local_devices()[0].device_kind
        text = f"mesh: {sizes}, of {jax.device_count()} x {kind}"
        Screen(stderr=True, quiet=config.quiet, highlight=False).print(text, soft_wrap=True)
    return mesh


def policy_context(config: DecodeConfig, loaded: Loaded) -> Context:
    """What the run's policy is bound to: its model, and the file that ``--predictor`` names."""
    predictor = None if config.predictor is None else pathlib.Path(config.predictor).expanduser()
    return Context(loaded.config, loaded.tokenizer, loaded.path, predictor, loaded.model.dtype)
