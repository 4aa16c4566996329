"""Train DynTS's importance predictor for a model: decode with the full cache, label what the right answers looked at,
fit a small MLP on the frozen model's hidden states. Three stages; the same command goes on where it was stopped.

python -m jkv.train_predictor --config configs/predictor_demo.yaml --model demo-llama --out runs/predictor
"""

from typing import TYPE_CHECKING

from jkv import hosts
from jkv.cli import run as run_command

if TYPE_CHECKING:
    from jkv.importance.config import TrainConfig


def parse(argv: list[str] | None) -> "TrainConfig":
    """Flags, and the YAML file they name, to a config. Raises UserError."""
    from jkv import flags
    from jkv.importance.config import HELP, TrainConfig

    return flags.parse(TrainConfig, argv, prog="python -m jkv.train_predictor", description=__doc__, help=HELP)


def main(argv: list[str] | None = None) -> None:
    """Parse, then call one function."""
    config = parse(argv)
    hosts.refuse("train_predictor")
    from jkv.importance.stages import train_predictor

    train_predictor(config)


if __name__ == "__main__":
    run_command(main)
