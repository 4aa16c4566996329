"""What must be the same to continue a run: configuration, prompts and answers, weights, the policy's code."""

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
    """What a config alone says of ``run_identity``."""
    identity = {**dataclasses.asdict(config), "dtype": dtype}
    # A mesh changes nothing but rounding; what --weights changes is in the weights themselves.
    for name in ("out", "quiet", "mesh", "weights"):
        del identity[name]
    if config.kv is None:  # said where it is something, so that earlier runs can go on
        del identity["kv"]
    return identity


def run_identity(
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
