"""The programs of a run: what is compiled, for which shapes. The engine and ``python -m jkv.plan`` both ask here.

There is one decode program for a run of any length, and one prefill program for each bucket of prompt lengths.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jkv.engine.chunked_prefill import CHUNK, chunked_prefill
from jkv.engine.prefill import buckets, prefill
from jkv.engine.state import DecodeSetup
from jkv.engine.step import decode

STEPS_PER_CALL = 64  # decode steps a host call: fewer refresh the progress line more often, and cost more calls

_SCALAR = jax.ShapeDtypeStruct((), jnp.int32)
_FLAG = jax.ShapeDtypeStruct((), jnp.bool_)
_KEY = jax.ShapeDtypeStruct((2,), jnp.uint32)


@dataclasses.dataclass(frozen=True)
class Program:
    """A function to compile, ``(weights, state, parameters, *rest) -> (state, *others)``; its state is donated.

    Attributes:
        name: 'decode', 'prefill 128', 'chunked prefill 256': the same name is the same program.
        function: what is compiled.
        rest: shapes and dtypes of the arguments after ``parameters``.
        outputs: a letter for each of ``others``: 'B' where it has a row each, '-' where it is one for all rows.
        bucket: tokens that a prompt is padded to; 0 for decode.
    """

    name: str
    function: Callable[..., Any]
    rest: tuple[jax.ShapeDtypeStruct, ...]
    outputs: str
    bucket: int = 0


def decode_program(setup: DecodeSetup, steps: int = STEPS_PER_CALL) -> Program:
    """The loop of up to ``steps`` decode steps (`jkv.engine.step.decode`)."""

    def run(weights: Any, state: Any, parameters: Any, stop_on_finish: jax.Array, stop_on_evict: jax.Array) -> Any:
        return decode(setup, weights, state, parameters, stop_on_finish, stop_on_evict, steps=steps)

    return Program("decode", run, (_FLAG, _FLAG), "B")


def prefill_program(setup: DecodeSetup, length: int) -> Program:
    """The program that reads a prompt of ``length`` tokens, chunked where it has to be (`reads_in_chunks`)."""
    bucket = prefill_bucket(setup, length)
    tokens = jax.ShapeDtypeStruct((bucket,), jnp.int32)
    if reads_in_chunks(setup, length):

        def run_chunks(weights: Any, state: Any, parameters: Any, *rest: jax.Array) -> Any:
            return chunked_prefill(setup, weights, state, parameters, *rest)

        rest = (_SCALAR, tokens, _SCALAR, _SCALAR, _SCALAR, _KEY, _FLAG)
        return Program(f"chunked prefill {bucket}", run_chunks, rest, "--", bucket)

    def run(weights: Any, state: Any, parameters: Any, *rest: jax.Array) -> Any:
        return prefill(setup, weights, state, parameters, *rest)

    return Program(f"prefill {bucket}", run, (_SCALAR, tokens, _SCALAR, _SCALAR, _KEY), "-", bucket)


def reads_in_chunks(setup: DecodeSetup, length: int) -> bool:
    """Whether a prompt is read in chunks: it is longer than the buffer, or the policy wants every query's attention,
    which for a whole prompt at once would be T x T."""
    return length > setup.rule.budget or setup.policy.needs.attention


def prefill_bucket(setup: DecodeSetup, length: int) -> int:
    """The padded length of a prompt of ``length`` tokens: few lengths, so that few programs are compiled."""
    budget = setup.rule.budget
    chunked = reads_in_chunks(setup, length)
    bucket = next(size for size in buckets(max(length, budget) if chunked else budget) if size >= length)
    return max(CHUNK, 1 << (bucket - 1).bit_length()) if chunked else bucket
