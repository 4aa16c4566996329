"""The real prefill and decode programs of a run, compiled for a mesh of devices that may not be here, from shapes."""

import dataclasses
import functools
import re
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from jkv.benchmark.policies import random_parameters
from jkv.chunked_prefill import CHUNK, chunked_prefill
from jkv.config import ModelConfig
from jkv.mesh import auto_formats, check_mesh, everywhere, lower_over_rows, state_shardings, weight_shardings
from jkv.models import Decoder
from jkv.models.quantized import INT8, quantize_decoder
from jkv.policies import DynTS, Policy, Retention
from jkv.predictor import random_predictor
from jkv.prefill import buckets, prefill
from jkv.sampling import Sampler
from jkv.state import DecodeState, Program, empty_state
from jkv.step import decode

STEPS = 64  # decode steps a host call, as in `Engine`


def abstract_parameters(
    policy: Policy, config: ModelConfig, dtype: Any, widths: tuple[int, int] | None
) -> tuple[Policy, Any]:
    """The policy ready for a model, and its parameters' shapes. ``widths``: of dynts's predictor, else 2D and D/2."""
    if isinstance(policy, DynTS):
        wide, narrow = widths or (None, None)
        predictor = jax.eval_shape(lambda: random_predictor(config.d_model, dtype=dtype, wide=wide, narrow=narrow))
        # Any token may be </think>: that there is one is part of the program.
        think_end = config.vocab_size - 1 if policy.think_end is None else policy.think_end
        return dataclasses.replace(policy, think_end=think_end), predictor
    bound: list[Policy] = []

    def shapes() -> Any:
        ready, parameters = random_parameters(policy, config)
        bound.append(ready)
        return parameters

    parameters = jax.eval_shape(shapes)
    return bound[0], parameters


@dataclasses.dataclass(frozen=True)
class Target:
    """A run to compile for: everything but the batch size. dtype: of weights, activations and buffer.  weights, kv:
    'int8' if they are that."""

    config: ModelConfig
    mesh: Mesh
    policy: Policy
    parameters: Any
    rule: Retention
    sampler: Sampler
    dtype: Any
    implementation: str = "auto"
    steps: int = STEPS
    weights: str | None = None
    kv: str | None = None

    @functools.cached_property
    def program(self) -> tuple[Program, Any]:
        """The program, and the shapes of its weights."""

        def make() -> Decoder:
            model = Decoder(self.config, rngs=nnx.Rngs(0), dtype=self.dtype)
            if self.weights == INT8:
                quantize_decoder(model)
            return model

        graph, weights = nnx.split(nnx.eval_shape(make))
        eos = self.config.eos_ids
        return Program(graph, self.config, self.policy, self.rule, self.sampler, eos, self.implementation), weights

    def arguments(self, rows: int) -> tuple[Program, Any, DecodeState, Any]:
        """The program, and weights, state and parameters as shapes that say where they live."""
        check_mesh(self.config, rows, self.mesh)
        program, weights = self.program
        state = jax.eval_shape(lambda: empty_state(program, rows, self.dtype, self.kv))
        return (
            program,
            _placed(weights, weight_shardings(weights, self.mesh)),
            _placed(state, state_shardings(state, self.config, self.mesh)),
            _placed(self.parameters, everywhere(self.parameters, self.mesh)),
        )


def _placed(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled program: its text, bytes a device by ``memory_analysis``, seconds it took, the weights' layouts."""

    text: str
    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    seconds: float
    formats: Any

    @property
    def peak(self) -> int:
        """Bytes a device while it runs: arguments, temporaries, and results that are no argument's buffer."""
        return self.arguments + self.temporaries + self.outputs - self.aliased


class OutOfMemory(Exception):
    """The compiler refuses a program that is larger than the device. ``required``: bytes a device it would take, to the
    compiler's two decimals, if it says so."""

    def __init__(self, message: str):
        super().__init__(message)
        found = re.search(r"total memory required.*?\(([0-9.]+)G\)", message)
        self.required = int(float(found[1]) * 2**30) if found else None


def compile_decode(target: Target, rows: int) -> Compiled:
    """The decode loop of ``target.steps`` steps."""
    program, *arguments = target.arguments(rows)

    def run(weights, state, parameters, *flags):
        return decode(program, weights, state, parameters, *flags, steps=target.steps)

    flag = jax.ShapeDtypeStruct((), jnp.bool_)
    return _compile(target, run, arguments, (flag, flag), "B", None)


def compile_prefill(target: Target, rows: int, formats: Any, length: int | None = None) -> Compiled:
    """The prefill of the bucket that a prompt of ``length`` tokens (the longest allowed unless given) falls into.

    formats: the weights' layouts that the decode program chose (``Compiled.formats``).
    """
    program, *arguments = target.arguments(rows)
    chunked = program.policy.needs.attention
    bucket = next(size for size in buckets(target.rule.budget) if size >= (length or target.rule.budget))
    if chunked:
        bucket = max(CHUNK, 1 << (bucket - 1).bit_length())
    scalar, flag = jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((), jnp.bool_)
    tokens, key = jax.ShapeDtypeStruct((bucket,), jnp.int32), jax.ShapeDtypeStruct((2,), jnp.uint32)
    read = chunked_prefill if chunked else prefill
    rest = (scalar, tokens, scalar, scalar, scalar, key, flag) if chunked else (scalar, tokens, scalar, scalar, key)

    def run(weights, state, parameters, *others):
        return read(program, weights, state, parameters, *others)

    return _compile(target, run, arguments, rest, "--" if chunked else "-", formats)


def _compile(
    target: Target, run: Callable[..., Any], arguments: Any, rest: Any, outputs: str, formats: Any
) -> Compiled:
    rest = _placed(rest, everywhere(rest, target.mesh))
    started = time.perf_counter()
    formats = auto_formats(arguments[0], target.mesh) if formats is None else formats
    lowered = lower_over_rows(run, target.mesh, target.config, (*arguments, *rest), outputs, formats)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise OutOfMemory(str(error)) from None
        raise
    memory = compiled.memory_analysis()
    assert memory is not None
    return Compiled(
        text=compiled.as_text() or "",
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        seconds=time.perf_counter() - started,
        formats=compiled.input_formats[0][0],
    )
