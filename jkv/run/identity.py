"""What must be the same to continue a run: configuration, prompts and answers, weights, a custom policy's code. A run's
config.json holds it, and `jkv.run.directory` refuses to continue where it differs."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import jax

from jkv.config.decode import DecodeConfig
from jkv.engine.placement import fetch
from jkv.policies import Policy
from jkv.policies.fingerprint import code_digest
from jkv.tasks import Problem


def identity_of(config: DecodeConfig, dtype: str) -> dict[str, Any]:
    """The part of `run_identity` that a config alone gives, without reading its model or task.

    Args:
        config: the run's.
        dtype: of its weights, with the default filled in.
    """
    identity = {**dataclasses.asdict(config), "dtype": dtype}
    # A mesh changes nothing but rounding, and ``weights`` changes the weights, which have a digest of their own.
    for name in ("out", "quiet", "mesh", "weights"):
        del identity[name]
    if config.kv is None:  # runs made before the flag existed have no such key and must still continue
        del identity["kv"]
    return identity


def run_identity(
    config: DecodeConfig, policy: Policy, dtype: str, arrays: Any, problems: Sequence[Problem]
) -> dict[str, Any]:
    """What must be the same to continue a run.

    Args:
        config: the run's.
        policy: its policy. Of a custom one the code counts, so that a resumed run notices an edit.
        dtype: of the weights.
        arrays: a pytree of the weights, the model's and the policy's.
        problems: the task's prompts and answers.

    Returns:
        JSON values: fields of ``config``, and digests of the rest under ``problems``, ``weights`` and, for a custom
        policy, ``code``.
    """
    identity = identity_of(config, dtype)
    # The plain grading has no entry: runs made before there were others must still continue.
    prompts = [(p.id, p.prompt_ids, p.answer, *(() if p.grading == "exact" else (p.grading,))) for p in problems]
    prompts = json.dumps(prompts).encode()
    weights = hashlib.sha256()
    for leaf in jax.tree.leaves(arrays):
        # The first row of a matrix is enough: training changes it, and reading all of a large model takes long.
        weights.update(fetch(leaf if leaf.ndim < 2 else leaf[0]).tobytes())
    code = code_digest(type(policy))
    own = {} if code is None else {"code": code}
    return {**identity, **own, "problems": _digest(prompts), "weights": weights.hexdigest()[:16]}


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
