"""Where an engine's arrays live and how its programs are compiled: on one device, or on a mesh of them."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh, Sharding

from jkv.distributed.mesh import everywhere, make_mesh
from jkv.distributed.weights import auto_formats
from jkv.engine.over_rows import lower_over_rows, state_formats
from jkv.engine.state import DecodeState
from jkv.models.config import ModelConfig
from jkv.models.decoder import Decoder
from jkv.ops.sharding import DATA, MODEL

# A program ``(weights, state, *rest) -> (state, *others)``; its state is donated.
Function = Callable[..., Any]


@runtime_checkable
class Placement(Protocol):
    """What an engine asks for."""

    def everywhere(self, tree: Any) -> Any:
        """Arrays (or their shapes) that every device needs: parameters, prompts, flags."""
        ...

    def empty(self, make: Callable[[], DecodeState]) -> DecodeState:
        """The state that ``make`` makes, each part of it made where it is to live."""
        ...

    def compile(self, function: Function, arguments: tuple[Any, ...], outputs: str, formats: Any) -> Any:
        """``function`` compiled for weights, state and the rest. outputs: as for `jkv.distributed.mesh.over_rows`.

        formats: of the weights, as another program of the same engine has chosen them; None lets this one choose.
        """
        ...

    def settle(self, model: Decoder, weights: nnx.State, compiled: Any) -> Any:
        """Lay out ``weights``, which are those of ``model``, as ``compiled`` wants them. Returns what ``compile`` is to
        be told of that."""
        ...


@dataclasses.dataclass(frozen=True)
class OneDevice:
    """Everything where JAX puts it."""

    def everywhere(self, tree: Any) -> Any:
        return tree

    def empty(self, make: Callable[[], DecodeState]) -> DecodeState:
        return make()

    def compile(self, function: Function, arguments: tuple[Any, ...], outputs: str, formats: Any) -> Any:
        del outputs, formats
        return jax.jit(function, donate_argnums=1).lower(*arguments).compile()

    def settle(self, model: Decoder, weights: nnx.State, compiled: Any) -> Any:
        del model, weights, compiled


@dataclasses.dataclass(frozen=True)
class OnMesh:
    """Rows on `data`; heads, feed-forward and vocabulary on `model` (`jkv.distributed.mesh`)."""

    mesh: Mesh
    config: ModelConfig

    def everywhere(self, tree: Any) -> Any:
        places = everywhere(tree, self.mesh)
        if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(tree)):
            return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, places)
        return jax.tree.map(put, tree, places)

    def empty(self, make: Callable[[], DecodeState]) -> DecodeState:
        formats = state_formats(jax.eval_shape(make), self.config, self.mesh)
        return jax.jit(make, out_shardings=formats)()

    def compile(self, function: Function, arguments: tuple[Any, ...], outputs: str, formats: Any) -> Any:
        formats = auto_formats(arguments[0], self.mesh) if formats is None else formats
        # Weights by their shapes: as arrays they would already have the layout that is to be chosen.
        shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
        arguments = (jax.tree.map(shape, arguments[0]), *arguments[1:])
        return lower_over_rows(function, self.mesh, self.config, arguments, outputs, formats).compile()

    def settle(self, model: Decoder, weights: nnx.State, compiled: Any) -> Any:
        formats = compiled.input_formats[0][0]
        # One weight at a time, in the model, too: there never is a second copy of all of them.
        for theirs, ours, wanted in zip(*map(_variables, (nnx.state(model), weights, formats)), strict=True):
            moved = jax.device_put(ours.get_value(), wanted.get_value())
            theirs.set_value(moved)
            ours.set_value(moved)
        return formats


def put(x: Any, place: Sharding) -> jax.Array:
    """An array that this process has, where ``place`` says. Where several hosts' devices have a part in it, each gives
    its own from the same array; nothing is sent (`jax.device_put` would first compare them all)."""
    if place.is_fully_addressable:
        return jax.device_put(x, place)
    here = np.asarray(x)
    return jax.make_array_from_callback(here.shape, place, lambda part: here[part])


def fetch(x: jax.Array) -> np.ndarray:
    """An array's values. Where parts of it are on other hosts' devices only, they come from there: to be called by all
    hosts of the replica, in step."""
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def placement_of(mesh: Mesh | None, config: ModelConfig) -> OneDevice | OnMesh:
    """On the mesh, or on one device. One TPU is a mesh, too: its default layouts would be copied at every call."""
    if mesh is None and jax.default_backend() == "tpu":
        mesh = make_mesh(jax.local_devices()[:1], {DATA: 1, MODEL: 1})
    return OneDevice() if mesh is None else OnMesh(mesh, config)


def _variables(state: Any) -> list[Any]:
    return [variable for _, variable in nnx.to_flat_state(state)]
