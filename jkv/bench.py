"""``python -m jkv.bench``: jkv beside transformers' ``generate``, on this machine, in one run.

Same random weights, same prompts, greedy, no end of sequence. The contestants take turns (A B C A B C ...), because
machines drift; what counts is the median of the ratios within a turn. PyTorch is needed (``pip install -e '.[test]'``).

With ``--policies``: what each eviction policy costs, beside the full cache at the same buffer size and occupancy.
"""

from jkv.terminal.command import run as run_command


def main(argv: list[str] | None = None) -> None:
    """Parse, then call one function."""
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
