"""Measure a model's query statistics once, for policy triattention, and store them beside its weights.

The model completes a task's prompts with the full cache, and the queries (before RoPE) of all these tokens are
averaged. A few problems are enough: every token counts for every layer, head and frequency.
"""

from jkv.terminal.command import run as run_command


def main(argv: list[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: the arguments, None for those of this process.
    """
    from jkv.config import command_line
    from jkv.config.calibrate import CalibrateConfig

    config = command_line.parse(CalibrateConfig, argv, prog="python -m jkv.calibrate", description=__doc__)
    from jkv.run.calibrate import calibrate

    calibrate(config)


if __name__ == "__main__":
    run_command(main)
