"""Compare the speed of jkv and of transformers' ``generate`` on this machine, in one run.

All have the same random weights and the same prompts, decode greedily and never end a sequence. They take turns (A B C
A B C ...), because a machine's speed drifts; the result is the median of the ratios within a turn. PyTorch is needed
(``pip install -e '.[test]'``).

With ``--policies`` it measures what each eviction policy costs, compared with the full cache at the same buffer size
and occupancy.
"""

from jkv.terminal.command import run as run_command


def main(argv: list[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: the arguments, None for those of this process.
    """
    from jkv.config import command_line
    from jkv.config.bench import BenchConfig

    config = command_line.parse(BenchConfig, argv, prog="python -m jkv.bench", description=__doc__)
    if config.policies:
        from jkv.benchmark.policies import compare_policies

        compare_policies(config)
    else:
        from jkv.benchmark.versus import versus

        versus(config)


if __name__ == "__main__":
    run_command(main)
