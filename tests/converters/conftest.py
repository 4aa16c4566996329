"""A small checkpoint that tests read, damage and convert."""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from converters.fill import abstract, fill, leaves
from converters.hf import write_hf
from jkv.errors import UserError
from jkv.models import Decoder
from jkv.models.config import ModelConfig

TINY = ModelConfig("llama", 50, 16, 24, 2, 4, 2, 6, 1e4, eos_ids=(2,))


class Checkpoint:
    """A small Hugging Face directory that tests damage."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.weights = directory / "model.safetensors"

    def tensors(self) -> dict[str, np.ndarray]:
        return load_file(self.weights)

    def save(self, tensors: dict[str, np.ndarray]) -> None:
        save_file(tensors, self.weights)

    def configure(self, **changes) -> None:
        """Set fields of config.json; the value ``...`` removes one."""
        path = self.directory / "config.json"
        data = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({name: value for name, value in data.items() if value is not ...}))


def random_decoder(config: ModelConfig, dtype="float32", seed=0) -> Decoder:
    """A Decoder with every leaf random (biases and scales too), so that no two leaves can be mistaken."""
    rng = np.random.default_rng(seed)
    shapes = {path: leaf.shape for path, leaf in leaves(abstract(config, dtype)).items()}
    arrays = ((path, rng.standard_normal(shape).astype(jnp.bfloat16).astype(dtype)) for path, shape in shapes.items())
    return fill(config, dtype, ((path, jax.device_put(array)) for path, array in arrays))


def attempt(call: Callable, *arguments) -> str:
    """The UserError's line, or nothing when the call succeeds. Any other exception is a failure of the test."""
    try:
        call(*arguments)
    except UserError as error:
        return str(error)
    return ""


@pytest.fixture
def checkpoint(tmp_path) -> Checkpoint:
    write_hf(random_decoder(TINY), tmp_path / "model")
    return Checkpoint(tmp_path / "model")
