"""Train DynTS's importance predictor for a model: decode with the full cache, label what the right answers looked at,
fit a small MLP on the frozen model's hidden states. Three stages; the same command goes on where it was stopped.

python -m jkv.train_predictor --config configs/predictor_demo.yaml --model demo-llama --out runs/predictor
"""

from typing import TYPE_CHECKING, Any

from jkv.callable_module import make_callable
from jkv.distributed import hosts
from jkv.terminal.command import run as run_command

if TYPE_CHECKING:
    from jkv.api.trained import Trained
    from jkv.config.train_predictor import TrainConfig


def parse(argv: list[str] | None) -> "TrainConfig":
    """Flags, and the YAML file they name, to a config. Raises UserError."""
    from jkv.config import command_line
    from jkv.config.train_predictor import TrainConfig

    return command_line.parse(TrainConfig, argv, prog="python -m jkv.train_predictor", description=__doc__)


def train_predictor(*, config: str | None = None, **words: Any) -> "Trained":
    """Train DynTS's importance predictor, from Python; what is returned goes into ``jkv.decode(..., predictor=...)``.

    config: a YAML file of arguments, as configs/predictor_demo.yaml; those given override it.  words: the flags of
    ``python -m jkv.train_predictor`` with _ for -. The same call continues a training that was stopped.
    Raises UserError for what a user can mend, in one line.
    """
    from jkv.api.trained import train_from_python

    return train_from_python(config, words)


def main(argv: list[str] | None = None) -> None:
    """Parse, then call one function."""
    config = parse(argv)
    hosts.refuse("train_predictor")
    from jkv.predictor_training import stages

    stages.train_predictor(config)


if __name__ == "__main__":
    run_command(main)
else:
    make_callable(__name__, train_predictor)
