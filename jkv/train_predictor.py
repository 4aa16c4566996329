"""Train DynTS's importance predictor for a model. Three stages: decode with the full cache, label each token with the
attention that right answers pay to it, fit a small MLP on the frozen model's hidden states. The same command continues
where it was stopped.

python -m jkv.train_predictor --config configs/predictor_demo.yaml --model demo-llama --out runs/predictor
"""

from typing import TYPE_CHECKING, Any

from jkv.callable_module import make_callable
from jkv.terminal.command import run as run_command

if TYPE_CHECKING:
    from jkv.api.trained import Trained
    from jkv.config.train_predictor import TrainConfig


def parse(argv: list[str] | None) -> "TrainConfig":
    """The configuration that flags, and the YAML file they name, give. Raises UserError if they are wrong.

    Args:
        argv: the arguments, None for those of this process.
    """
    from jkv.config import command_line
    from jkv.config.train_predictor import TrainConfig

    return command_line.parse(TrainConfig, argv, prog="python -m jkv.train_predictor", description=__doc__)


def train_predictor(*, config: str | None = None, **flags: Any) -> "Trained":
    """Train DynTS's importance predictor, from Python. The same call continues a training that was stopped.

    Args:
        config: a YAML file of arguments, such as configs/predictor_demo.yaml; those that are given here override it.
        flags: the flags of ``python -m jkv.train_predictor``, with ``_`` for ``-``.

    Returns:
        The predictor, for ``jkv.decode(..., predictor=...)``, with its scores on held-out traces.

    Raises:
        UserError: anything that a user can mend, in one line.
    """
    from jkv.api.trained import train_from_python

    return train_from_python(config, flags)


def main(argv: list[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: the arguments, None for those of this process.
    """
    config = parse(argv)
    from jkv.predictor_training import stages

    stages.train_predictor(config)


if __name__ == "__main__":
    run_command(main)
else:
    make_callable(__name__, train_predictor)
