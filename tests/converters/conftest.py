import json
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from converters.hf import write_hf
from jkv.config import ModelConfig
from jkv.models import Decoder

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
    model = Decoder(config, rngs=nnx.Rngs(seed), dtype=jnp.dtype(dtype))
    rng = np.random.default_rng(seed)
    graph, state = nnx.split(model)
    for _, leaf in nnx.to_flat_state(state):
        leaf.set_value(jnp.asarray(rng.standard_normal(leaf.shape).astype(ml_dtypes.bfloat16).astype(dtype)))
    return nnx.merge(graph, state)


@pytest.fixture
def checkpoint(tmp_path) -> Checkpoint:
    write_hf(random_decoder(TINY), tmp_path / "model")
    return Checkpoint(tmp_path / "model")
