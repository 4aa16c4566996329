"""The engine of one run is used for the next if that has the same programs: runs that differ in their task alone then
compile nothing."""

import dataclasses
from collections.abc import Callable

from jkv.config.decode import DecodeConfig
from jkv.engine.engine import Engine
from jkv.engine.events import Timings
from jkv.policies import Retention

EngineKey = tuple[str, Retention]
"""What an engine's compiled programs depend on; see `engine_key`."""
# Fields of a config that the compiled programs don't depend on.
_NOT_COMPILED = ("task", "limit", "samples", "max_new_tokens", "out", "quiet")


class Engines:
    """Keeps the engine of the last run. Only one: each has a KV buffer of its own."""

    def __init__(self):
        self._key: EngineKey | None = None
        self._engine: Engine | None = None

    def get(self, key: EngineKey, make: Callable[[], Engine]) -> Engine:
        """An engine with these programs, its timings at zero.

        Args:
            key: what the programs depend on.
            make: makes a new engine; called if the last run's has another key.
        """
        if self._engine is None or key != self._key:
            self._engine = None  # frees its buffer before the next is allocated
            self._key, self._engine = key, make()
        self._engine.timings = Timings()
        return self._engine


def engine_key(config: DecodeConfig, rule: Retention) -> EngineKey:
    """What the compiled programs of a run depend on.

    Args:
        config: the run's; its fields that change no program are left out.
        rule: its budget, with all defaults filled in.
    """
    values = dataclasses.asdict(config).items()
    return repr({name: value for name, value in values if name not in _NOT_COMPILED}), rule
