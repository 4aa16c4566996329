"""``jkv.train_predictor(...)``: training from Python, and what comes back."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from jkv.api.picture import Picture, picture
from jkv.config.train_predictor import TrainConfig
from jkv.predictor_training.stages import train_predictor
from jkv.terminal import flags
from jkv.terminal.notebook_line import status_line


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained predictor: give it to ``jkv.decode(..., predictor=...)``.

    summary: what summary.json has, with scores on held-out traces.  directory: where everything is.
    """

    summary: dict[str, Any]
    directory: pathlib.Path

    def __fspath__(self) -> str:
        return str(self.directory / "predictor.safetensors")

    @property
    def held_out(self) -> dict[str, dict[str, float]]:
        """Scores on traces that it has not seen: of the predictor, of a random order, of the newest first."""
        return self.summary["held_out"]

    @property
    def loss(self) -> Picture | None:
        """Loss and overlap over the training."""
        return picture(self.directory / "loss.png")

    @property
    def trace(self) -> Picture | None:
        """What was predicted for one thought, and what was true."""
        return picture(self.directory / "trace.png")


def train_from_python(config: str | None, words: Mapping[str, Any]) -> Trained:
    """Run ``python -m jkv.train_predictor`` with these words as its flags. Raises UserError."""
    settled = flags.from_arguments(TrainConfig, words, config=config)
    with status_line():
        summary = train_predictor(settled, show=False)
    return Trained(summary, pathlib.Path(settled.directory).expanduser())
