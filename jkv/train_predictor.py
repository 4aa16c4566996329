"""Train DynTS's importance predictor for a model: decode with the full cache, label what the right answers looked at,
fit a small MLP on the frozen model's hidden states. Three stages; the same command goes on where it was stopped.

python -m jkv.train_predictor --config configs/predictor_demo.yaml --model demo-llama --out runs/predictor
"""

from typing import TYPE_CHECKING, Any

from jkv import hosts
from jkv.callable_module import make_callable
from jkv.cli import run as run_command

if TYPE_CHECKING:
    from jkv.api.trained import Trained
    from jkv.importance.config import TrainConfig


def parse(argv: list[str] | None) -> "TrainConfig":
    """Flags, and the YAML file they name, to a config. Raises UserError."""
    from jkv import flags
    from jkv.importance.config import HELP, TrainConfig

    return flags.parse(TrainConfig, argv, prog="python -m jkv.train_predictor", description=__doc__, help=HELP)


def train_predictor(*, config: str | None = None, **words: Any) -> "Trained":
    """Train DynTS's importance predictor, from Python; what is returned goes into ``jkv.decode(..., predictor=...)``.

    config: a YAML file of arguments, as configs/predictor_demo.yaml; those given override it.  words: the flags of
    ``python -m jkv.train_predictor`` with _ for -. The same call continues a training that was stopped.
    Raises UserError for what a user can mend, in one line.
    """
    from jkv.api.trained import train_words

    return train_words(config, words)


def main(argv: list[str] | None = None) -> None:
    """Parse, then call one function."""
    config = parse(argv)
    hosts.refuse("train_predictor")
    from jkv.importance import stages

    stages.train_predictor(config)


if __name__ == "__main__":
    run_command(main)
else:
    make_callable(__name__, train_predictor)
