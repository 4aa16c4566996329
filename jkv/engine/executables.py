"""What is compiled for one engine. Each program is compiled when it is first needed, and then held here."""

import collections
import time
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from jkv.engine.events import Timings
from jkv.engine.placement import Placement
from jkv.engine.programs import Program, decode_program, prefill_program
from jkv.engine.state import DecodeSetup, DecodeState
from jkv.models.decoder import Decoder


class Executables:
    """Compiles the programs of a setup (`jkv.engine.programs`) for a model's weights and a placement.

    Args:
        setup: what the programs depend on.
        model: its weights move to the layouts that the decode program chooses.
        weights: those of ``model``, as ``nnx.split`` gives them. They move, too.
        placement: one device or a mesh.
        make_state: makes the state of a batch; only its shapes are used here.
        parameters: the policy's, placed.
        steps_per_call: decode steps in one call of the decode program.

    Attributes:
        traces: how often JAX traced each program, by name. It should be 1 each, as shapes don't change.
    """

    def __init__(
        self,
        setup: DecodeSetup,
        model: Decoder,
        weights: nnx.State,
        placement: Placement,
        *,
        make_state: Callable[[], DecodeState],
        parameters: Any,
        steps_per_call: int,
    ):
        self.traces: collections.Counter[str] = collections.Counter()
        self._setup, self._model, self._weights, self._placement = setup, model, weights, placement
        self._make_state, self._parameters, self._steps_per_call = make_state, parameters, steps_per_call
        self._formats: nnx.State | None = None  # the weights' layouts, once the decode program has chosen them
        self._compiled: dict[str, jax.stages.Compiled] = {}

    def decode(self, timings: Timings) -> jax.stages.Compiled:
        """The decode program, compiled. It comes before any prefill, because it chooses the weights' layouts.

        Args:
            timings: seconds of compilation are added here.
        """
        if "decode" not in self._compiled:
            compiled = self._compile(decode_program(self._setup, self._steps_per_call), timings)
            self._formats = self._placement.lay_out_weights(self._model, self._weights, compiled)
        return self._compiled["decode"]

    def prefill(self, length: int, timings: Timings) -> tuple[jax.stages.Compiled, int]:
        """The program that reads a prompt, compiled.

        Args:
            length: tokens of the prompt.
            timings: seconds of compilation are added here.

        Returns:
            The program, and how many tokens it wants the prompt padded to.
        """
        self.decode(timings)
        program = prefill_program(self._setup, length)
        if program.name not in self._compiled:
            self._compile(program, timings)
        return self._compiled[program.name], program.bucket

    def _compile(self, program: Program, timings: Timings) -> jax.stages.Compiled:
        """Compile a program, hold it, and add the seconds to ``timings``."""

        def traced(*arguments: Any) -> Any:
            """The program's function; JAX runs it only when it traces."""
            self.traces[program.name] += 1
            return program.function(*arguments)

        started = time.perf_counter()
        rest = self._placement.replicate(program.rest)
        arguments = (self._weights, jax.eval_shape(self._make_state), self._parameters, *rest)
        compiled = self._placement.compile(traced, arguments, program.outputs, self._formats)
        timings.compile += time.perf_counter() - started
        self._compiled[program.name] = compiled
        return compiled
