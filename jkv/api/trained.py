"""``jkv.train_predictor(...)``: training from Python, and what it returns."""

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
    """A trained predictor, for ``jkv.decode(..., predictor=...)``.

    Attributes:
        summary: the contents of summary.json.
        directory: where the training's files are, predictor.safetensors among them.
    """

    summary: dict[str, Any]
    directory: pathlib.Path

    def __fspath__(self) -> str:
        return str(self.directory / "predictor.safetensors")

    @property
    def held_out(self) -> dict[str, dict[str, float]]:
        """Scores on traces that it was not trained on: of the predictor, of random scores, of newest-first order."""
        return self.summary["held_out"]

    @property
    def loss(self) -> Picture | None:
        """The loss and the overlap with the true best tokens during the training. None if it was not drawn."""
        return picture(self.directory / "loss.png")

    @property
    def trace(self) -> Picture | None:
        """The predicted and the true importance of each token of one thought. None if it was not drawn."""
        return picture(self.directory / "trace.png")


def train_from_python(config: str | None, arguments: Mapping[str, Any]) -> Trained:
    """Run ``python -m jkv.train_predictor``, in this process.

    Args:
        config: a YAML file of arguments.
        arguments: values by field of TrainConfig; they override the file.

    Raises:
        UserError: anything that a user can mend.
    """
    train_config = flags.from_arguments(TrainConfig, arguments, config=config)
    with status_line():
        summary = train_predictor(train_config, show=False)
    return Trained(summary, pathlib.Path(train_config.directory).expanduser())
