"""The programs of a run: what is compiled, and for which shapes. The engine and ``python -m jkv.plan`` both ask here.

There is one decode program, for a run of any length, and one prefill program for each length that prompts are padded
to (a bucket).

A *setup* (`jkv.engine.state.DecodeSetup`) says what programs depend on. A *program* is something to compile: a function
and the shapes of its arguments. What is compiled is held by `jkv.engine.executables.Executables`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jkv.axes import Array, Bool, Int
from jkv.engine.chunked_prefill import MAX_CHUNK, chunked_prefill
from jkv.engine.prefill import buckets, prefill
from jkv.engine.state import DecodeSetup, DecodeState
from jkv.engine.step import decode

STEPS_PER_CALL = 64  # decode steps in one call of the device: fewer refresh progress more often, but cost more calls

_SCALAR = jax.ShapeDtypeStruct((), jnp.int32)
_FLAG = jax.ShapeDtypeStruct((), jnp.bool_)
_KEY = jax.ShapeDtypeStruct((2,), jnp.uint32)


@dataclasses.dataclass(frozen=True)
class Program:
    """A function to compile, and the shapes to compile it for.

    Attributes:
        name: 'decode', 'prefill 128', 'chunked prefill 256'. Within an engine, the same name is the same program.
        function: ``(weights, state, parameters, *rest) -> (state, *others)``; its state is donated.
        rest: shapes and dtypes of the arguments after ``parameters``.
        outputs: a letter for each of ``others``: 'B' if its leading axis is rows, '-' if it has no rows.
        bucket: tokens that a prompt is padded to; 0 for decode.
    """

    name: str
    function: Callable[..., Any]
    rest: tuple[jax.ShapeDtypeStruct, ...]
    outputs: str
    bucket: int = 0


def decode_program(setup: DecodeSetup, steps: int = STEPS_PER_CALL) -> Program:
    """The loop of up to ``steps`` decode steps (`jkv.engine.step.decode`)."""

    def run(
        weights: nnx.State,
        state: DecodeState,
        parameters: Any,
        stop_on_finish: Bool[Array, ""],
        stop_on_evict: Bool[Array, ""],
    ) -> tuple[DecodeState, Int[Array, "B steps"]]:
        """``decode`` of this setup."""
        return decode(setup, weights, state, parameters, stop_on_finish, stop_on_evict, steps=steps)

    return Program("decode", run, (_FLAG, _FLAG), "B")


def prefill_program(setup: DecodeSetup, length: int) -> Program:
    """The program that reads a prompt of ``length`` tokens, in chunks where it has to (`reads_in_chunks`)."""
    bucket = prefill_bucket(setup, length)
    tokens = jax.ShapeDtypeStruct((bucket,), jnp.int32)
    if reads_in_chunks(setup, length):

        def run_chunks(
            weights: nnx.State, state: DecodeState, parameters: Any, *rest: jax.Array
        ) -> tuple[DecodeState, Int[Array, ""], Int[Array, ""]]:
            """``chunked_prefill`` of this setup."""
            return chunked_prefill(setup, weights, state, parameters, *rest)

        rest = (_SCALAR, tokens, _SCALAR, _SCALAR, _SCALAR, _KEY, _FLAG)
        return Program(f"chunked prefill {bucket}", run_chunks, rest, "--", bucket)

    def run(
        weights: nnx.State, state: DecodeState, parameters: Any, *rest: jax.Array
    ) -> tuple[DecodeState, Int[Array, ""]]:
        """``prefill`` of this setup."""
        return prefill(setup, weights, state, parameters, *rest)

    return Program(f"prefill {bucket}", run, (_SCALAR, tokens, _SCALAR, _SCALAR, _KEY), "-", bucket)


def reads_in_chunks(setup: DecodeSetup, length: int) -> bool:
    """Whether a prompt of ``length`` tokens is read in chunks: because it is longer than the buffer, or because the
    policy asks for every token's attention weights, which for a whole prompt at once would take T x T numbers a head.
    """
    return length > setup.rule.budget or setup.policy.needs.attention


def prefill_bucket(setup: DecodeSetup, length: int) -> int:
    """The tokens that a prompt of ``length`` tokens is padded to. There are few such lengths, so that few programs are
    compiled: powers of two from 32 and the budget; in chunks, powers of two from ``MAX_CHUNK``.

    Whether a prompt may be longer than the budget is not decided here but by ``Retention.check_prompt``.
    """
    budget = setup.rule.budget
    chunked = reads_in_chunks(setup, length)
    bucket = next(size for size in buckets(max(length, budget) if chunked else budget) if size >= length)
    return max(MAX_CHUNK, 1 << (bucket - 1).bit_length()) if chunked else bucket
