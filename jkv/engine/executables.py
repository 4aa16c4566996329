"""The compiled programs of one engine: each is compiled when it is first needed, and kept."""

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
    """Compiles the programs of a setup for a model and a placement.

    Attributes:
        traces: how often JAX traced each program, by name; 1 each, or shapes were not fixed.
    """

    def __init__(
        self,
        setup: DecodeSetup,
        model: Decoder,
        weights: nnx.State,
        placement: Placement,
        *,
        empty: Callable[[], DecodeState],
        parameters: Any,
        steps_per_call: int,
    ):
        self.traces: collections.Counter[str] = collections.Counter()
        self._setup, self._model, self._weights, self._placement = setup, model, weights, placement
        self._empty, self._parameters, self._steps_per_call = empty, parameters, steps_per_call
        self._formats: Any = None  # the weights' layouts, once the decode program has chosen them
        self._kept: dict[str, jax.stages.Compiled] = {}

    def decode(self, timings: Timings) -> jax.stages.Compiled:
        """The decode loop. Compiled before any prefill, because it decides how the weights are laid out."""
        if "decode" not in self._kept:
            compiled = self._compile(decode_program(self._setup, self._steps_per_call), timings)
            self._formats = self._placement.settle(self._model, self._weights, compiled)
        return self._kept["decode"]

    def prefill(self, length: int, timings: Timings) -> tuple[jax.stages.Compiled, int]:
        """What reads a prompt of ``length`` tokens, and the length that the prompt is padded to."""
        self.decode(timings)
        program = prefill_program(self._setup, length)
        if program.name not in self._kept:
            self._compile(program, timings)
        return self._kept[program.name], program.bucket

    def _compile(self, program: Program, timings: Timings) -> jax.stages.Compiled:
        def traced(*arguments: Any) -> Any:
            self.traces[program.name] += 1
            return program.function(*arguments)

        started = time.perf_counter()
        rest = self._placement.everywhere(program.rest)
        arguments = (self._weights, jax.eval_shape(self._empty), self._parameters, *rest)
        compiled = self._placement.compile(traced, arguments, program.outputs, self._formats)
        timings.compile += time.perf_counter() - started
        self._kept[program.name] = compiled
        return compiled
