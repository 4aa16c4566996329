"""The real prefill and decode programs of a run, compiled for a mesh of devices that may not be here, from shapes."""

import dataclasses
import functools
import re
import time
from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from jkv.distributed.mesh import check_mesh, everywhere
from jkv.distributed.weights import auto_formats, weight_shardings
from jkv.engine.over_rows import lower_over_rows, state_shardings
from jkv.engine.programs import STEPS_PER_CALL, Program, decode_program, prefill_program
from jkv.engine.sampling import Sampler
from jkv.engine.state import DecodeSetup, DecodeState, empty_state
from jkv.models import Decoder
from jkv.models.config import ModelConfig
from jkv.models.predictor import random_predictor
from jkv.models.quantized import INT8, quantize_decoder
from jkv.policies import DynTS, Policy, Retention
from jkv.policies.untrained import random_parameters


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
    steps: int = STEPS_PER_CALL
    weights: str | None = None
    kv: str | None = None

    @functools.cached_property
    def setup(self) -> tuple[DecodeSetup, Any]:
        """What the programs are compiled for, and the shapes of its weights."""

        def make() -> Decoder:
            model = Decoder(self.config, rngs=nnx.Rngs(0), dtype=self.dtype)
            if self.weights == INT8:
                quantize_decoder(model)
            return model

        graph, weights = nnx.split(nnx.eval_shape(make))
        eos = self.config.eos_ids
        return DecodeSetup(graph, self.config, self.policy, self.rule, self.sampler, eos, self.implementation), weights

    def arguments(self, rows: int) -> tuple[DecodeSetup, Any, DecodeState, Any]:
        """The setup, and weights, state and parameters as shapes that say where they live."""
        check_mesh(self.config, rows, self.mesh)
        setup, weights = self.setup
        state = jax.eval_shape(lambda: empty_state(setup, rows, self.dtype, self.kv))
        return (
            setup,
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
    """The decode loop of ``target.steps`` steps. Raises OutOfMemory if the compiler refuses it."""
    setup, *arguments = target.arguments(rows)
    return _compile(target, decode_program(setup, target.steps), arguments, None)


def compile_prefill(target: Target, rows: int, formats: Any, length: int | None = None) -> Compiled:
    """The prefill of the bucket that a prompt of ``length`` tokens (the longest allowed unless given) falls into.

    formats: the weights' layouts that the decode program chose (``Compiled.formats``).
    Raises OutOfMemory if the compiler refuses it.
    """
    setup, *arguments = target.arguments(rows)
    return _compile(target, prefill_program(setup, length or target.rule.budget), arguments, formats)


def _compile(target: Target, program: Program, arguments: Sequence[Any], formats: Any) -> Compiled:
    rest = _placed(program.rest, everywhere(program.rest, target.mesh))
    started = time.perf_counter()
    formats = auto_formats(arguments[0], target.mesh) if formats is None else formats
    lowered = lower_over_rows(
        program.function, target.mesh, target.config, (*arguments, *rest), program.outputs, formats
    )
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
