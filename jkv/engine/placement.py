"""Where an engine's arrays live and how its programs are compiled: for one device, or for a mesh of devices."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh, Sharding
from jax.typing import ArrayLike

from jkv.distributed.mesh import everywhere, make_mesh
from jkv.distributed.weights import auto_formats
from jkv.engine.over_rows import lower_over_rows, state_formats
from jkv.engine.state import DecodeState
from jkv.models.config import ModelConfig
from jkv.models.decoder import Decoder
from jkv.ops.sharding import DATA, MODEL

# The function of a `jkv.engine.programs.Program`: ``(weights, state, *rest) -> (state, *others)``.
Function = Callable[..., Any]


@runtime_checkable
class Placement(Protocol):
    """What an engine needs to know of the devices that it runs on."""

    def replicate(self, tree: Any) -> Any:
        """A pytree of arrays, or of their shapes, with a copy on every device: parameters, prompts, flags."""
        ...

    def make_state(self, make: Callable[[], DecodeState]) -> DecodeState:
        """The state that ``make`` returns. Each part is made on the device where it is to live."""
        ...

    def compile(
        self, function: Function, arguments: tuple[Any, ...], outputs: str, formats: nnx.State | None
    ) -> jax.stages.Compiled:
        """Compile a function whose state is donated.

        Args:
            function: ``(weights, state, *rest) -> (state, *others)``.
            arguments: weights, state and the rest, or their shapes.
            outputs: as for `jkv.engine.over_rows.over_rows`.
            formats: the weights' layouts, as ``lay_out_weights`` returned them; None lets the compiler choose.
        """
        ...

    def lay_out_weights(self, model: Decoder, weights: nnx.State, compiled: jax.stages.Compiled) -> nnx.State | None:
        """Move weights to the layouts that a compiled program chose.

        Args:
            model: its weights are replaced.
            weights: those of ``model``, as ``nnx.split`` gives them; they are replaced, too.
            compiled: the program.

        Returns:
            The layouts, for ``compile``.
        """
        ...


@dataclasses.dataclass(frozen=True)
class OneDevice:
    """Everything is where JAX puts it by default."""

    def replicate(self, tree: Any) -> Any:
        """``tree`` as it is."""
        return tree

    def make_state(self, make: Callable[[], DecodeState]) -> DecodeState:
        """What ``make`` returns."""
        return make()

    def compile(
        self, function: Function, arguments: tuple[Any, ...], outputs: str, formats: nnx.State | None
    ) -> jax.stages.Compiled:
        """Compile for one device; layouts are JAX's defaults."""
        del outputs, formats
        return jax.jit(function, donate_argnums=1).lower(*arguments).compile()

    def lay_out_weights(self, model: Decoder, weights: nnx.State, compiled: jax.stages.Compiled) -> None:
        """Nothing to do."""
        del model, weights, compiled


@dataclasses.dataclass(frozen=True)
class OnMesh:
    """Arrays are divided over a mesh: rows over `data`; heads, feed-forward and vocabulary over `model`.

    Attributes:
        mesh: with axes `data` and `model`.
        config: the model's.
    """

    mesh: Mesh
    config: ModelConfig

    def replicate(self, tree: Any) -> Any:
        """A pytree of arrays, or of their shapes, with a copy on every device of the mesh."""
        places = everywhere(tree, self.mesh)
        if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(tree)):
            return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, places)
        return jax.tree.map(put, tree, places)

    def make_state(self, make: Callable[[], DecodeState]) -> DecodeState:
        """The state that ``make`` returns; each device makes its own part."""
        formats = state_formats(jax.eval_shape(make), self.config, self.mesh)
        return jax.jit(make, out_shardings=formats)()

    def compile(
        self, function: Function, arguments: tuple[Any, ...], outputs: str, formats: nnx.State | None
    ) -> jax.stages.Compiled:
        """Compile for the mesh, each device on its own rows (`jkv.engine.over_rows`)."""
        formats = auto_formats(arguments[0], self.mesh) if formats is None else formats
        # Pass weights as shapes. Arrays already have a layout, and the compiler couldn't choose another.
        shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
        arguments = (jax.tree.map(shape, arguments[0]), *arguments[1:])
        return lower_over_rows(function, self.mesh, self.config, arguments, outputs, formats).compile()

    def lay_out_weights(self, model: Decoder, weights: nnx.State, compiled: jax.stages.Compiled) -> nnx.State:
        """Move weights to the layouts that the compiler chose, and return these."""
        formats = compiled.input_formats[0][0]
        # One weight at a time, replaced at once in the model as well: there is never a second copy of all weights.
        for in_model, in_weights, wanted in zip(*map(_variables, (nnx.state(model), weights, formats)), strict=True):
            moved = jax.device_put(in_weights.get_value(), wanted.get_value())
            in_model.set_value(moved)
            in_weights.set_value(moved)
        return formats


def put(x: ArrayLike, place: Sharding) -> jax.Array:
    """An array of this process, put on devices.

    If some of the devices belong to other hosts, every host calls this with the same array and fills its own devices;
    nothing is sent. (`jax.device_put` would first check that all hosts have the same values, which sends them.)

    Args:
        x: the array.
        place: the sharding that it gets.
    """
    if place.is_fully_addressable:
        return jax.device_put(x, place)
    here = np.asarray(x)
    return jax.make_array_from_callback(here.shape, place, lambda part: here[part])


def fetch(x: jax.Array) -> np.ndarray:
    """An array's values, on the host.

    If some parts are on other hosts' devices only, they are sent: all hosts of the replica must then make this call,
    in the same order among such calls.
    """
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def placement_of(mesh: Mesh | None, config: ModelConfig) -> OneDevice | OnMesh:
    """On ``mesh``, or on one device if it is None. A single TPU is treated as a mesh of one: weights and buffer then
    get layouts that the programs want, where default layouts would be copied at every call."""
    if mesh is None and jax.default_backend() == "tpu":
        mesh = make_mesh(jax.local_devices()[:1], {DATA: 1, MODEL: 1})
    return OneDevice() if mesh is None else OnMesh(mesh, config)


def _variables(state: nnx.State) -> list[nnx.Variable]:
    """The variables of a state, always in the same order."""
    return [variable for _, variable in nnx.to_flat_state(state)]
