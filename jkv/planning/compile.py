"""A run's own prefill and decode programs, compiled from shapes for a mesh of devices that need not be here.

The programs come from `jkv.engine.programs`, where the engine takes them from, too.
"""

import dataclasses
import functools
import re
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from jkv.distributed.mesh import check_mesh, everywhere
from jkv.distributed.weights import auto_formats, weight_shardings
from jkv.engine.over_rows import lower_over_rows, state_shardings
from jkv.engine.programs import STEPS_PER_CALL, Program, decode_program, prefill_program
from jkv.engine.sampling import Sampler
from jkv.engine.state import DecodeSetup, DecodeState, empty_state
from jkv.models.config import ModelConfig
from jkv.models.predictor import random_predictor
from jkv.planning.models import abstract_decoder
from jkv.policies import DynTS, Policy, Retention
from jkv.policies.untrained import bind_untrained


def abstract_parameters(
    policy: Policy, config: ModelConfig, dtype: DTypeLike, widths: tuple[int, int] | None
) -> tuple[Policy, Any]:
    """A policy ready to run on a model, without the parameters that it would have to be trained or calibrated for.

    Args:
        policy: as it was made from a run's options.
        config: the model's.
        dtype: of dynts's predictor.
        widths: the sizes of that predictor's two hidden layers; 2D and D/2 if None.

    Returns:
        The policy, and its parameters: a pytree of its own kind, with shapes in place of arrays.
    """
    if isinstance(policy, DynTS):
        wide, narrow = widths or (None, None)
        predictor = jax.eval_shape(lambda: random_predictor(config.d_model, dtype=dtype, wide=wide, narrow=narrow))
        # The program depends on whether a token is </think>, and is the same size whichever that is.
        think_end = config.vocab_size - 1 if policy.think_end is None else policy.think_end
        return dataclasses.replace(policy, think_end=think_end), predictor
    ready_policies: list[Policy] = []

    def make_parameters() -> Any:
        """Random parameters. `jax.eval_shape` returns shapes only, so the policy is put into the list."""
        ready, parameters = bind_untrained(policy, config)
        ready_policies.append(ready)
        return parameters

    parameters = jax.eval_shape(make_parameters)
    return ready_policies[0], parameters


@dataclasses.dataclass(frozen=True)
class Target:
    """A run to compile programs of: everything that they depend on, but the batch size.

    Attributes:
        config: the model's.
        mesh: devices, with axes `data` and `model`.
        policy: ready to run (`abstract_parameters`).
        parameters: shapes of its parameters, a pytree of its own kind.
        rule: its budget, and what an eviction keeps.
        sampler: how tokens are drawn.
        dtype: of weights, activations and KV buffer.
        implementation: of the ops: auto, xla or pallas.
        steps: decode steps a call of the decode program.
        weights: 'int8' if the weights are that.
        kv: 'int8' if the KV buffer is that.
    """

    config: ModelConfig
    mesh: Mesh
    policy: Policy
    parameters: Any
    rule: Retention
    sampler: Sampler
    dtype: np.dtype
    implementation: str = "auto"
    steps: int = STEPS_PER_CALL
    weights: str | None = None
    kv: str | None = None

    @functools.cached_property
    def setup(self) -> tuple[DecodeSetup, nnx.State]:
        """What the programs are compiled for, and the weights' shapes."""
        graph, weights = nnx.split(abstract_decoder(self.config, self.dtype, self.weights))
        eos = self.config.eos_ids
        return DecodeSetup(graph, self.config, self.policy, self.rule, self.sampler, eos, self.implementation), weights

    def arguments(self, rows: int) -> tuple[DecodeSetup, nnx.State, DecodeState, Any]:
        """What the programs take.

        Args:
            rows: the batch size.

        Returns:
            The setup; the shapes of the weights, of the state of a batch and of the policy's parameters, each with its
            place on the mesh.

        Raises:
            UserError: the mesh can't share the model or the rows evenly.
        """
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
    """A pytree of shapes, each with its sharding."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled program, and its memory as ``memory_analysis`` gives it, in bytes on each device.

    Attributes:
        text: its HLO after all of XLA's passes, which `jkv.planning.hlo` reads; '' where there is none.
        arguments: bytes of its arguments.
        outputs: bytes of its results.
        aliased: bytes of those results that are written into an argument's buffer.
        temporaries: bytes of everything else.
        seconds: how long it took to lower and compile.
        formats: a pytree with the layout of each of the weights.
    """

    text: str
    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    seconds: float
    formats: Any

    @property
    def peak(self) -> int:
        """Bytes on each device while it runs: arguments, temporaries, and results that need a buffer of their own."""
        return self.arguments + self.temporaries + self.outputs - self.aliased


class OutOfMemory(Exception):
    """The compiler refuses a program, since it needs more memory than a device has.

    Attributes:
        required: bytes on each device that it would need, if the compiler says how many. It says so in GiB, to two
            decimals.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        found = re.search(r"total memory required.*?\(([0-9.]+)G\)", message)
        self.required = int(float(found[1]) * 2**30) if found else None


def compile_decode(target: Target, rows: int) -> Compiled:
    """Compile the decode program: a loop of up to ``target.steps`` steps.

    Args:
        target: the run.
        rows: the batch size.

    Raises:
        OutOfMemory: it needs more memory than a device has.
        UserError: the mesh can't share the model or the rows evenly.
    """
    setup, *arguments = target.arguments(rows)
    return _compile(target, decode_program(setup, target.steps), arguments, None)


def compile_prefill(target: Target, rows: int, formats: Any, length: int | None = None) -> Compiled:
    """Compile the prefill program for prompts of about ``length`` tokens.

    Args:
        target: the run.
        rows: the batch size.
        formats: the weights' layouts, as the decode program has chosen them (``Compiled.formats``): both programs
            use the same weights. None lets this program choose.
        length: tokens of a prompt; as many as the budget if None. Prompts of similar lengths share a program.

    Raises:
        OutOfMemory: it needs more memory than a device has.
        UserError: the mesh can't share the model or the rows evenly.
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
