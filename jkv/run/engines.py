"""Engines are kept from run to run, so that runs which differ in task alone share compiled programs."""

import dataclasses
from typing import Any

from jkv.config.decode import DecodeConfig
from jkv.engine.engine import Engine
from jkv.engine.events import Timings
from jkv.policies import Retention

# What the compiled programs don't depend on.
_ELSEWHERE = ("task", "limit", "samples", "max_new_tokens", "out", "trace", "quiet")


class Engines:
    """Keeps the last engine."""

    def __init__(self):
        self._key: Any = None
        self._engine: Engine | None = None

    def get(self, key: Any, *arguments: Any, **named: Any) -> Engine:
        """The engine of ``key`` with its clocks at zero: the last one if it has that key, else a new one.

        Args:
            key: what the programs depend on (`engine_key`).
            arguments, named: as for Engine.
        """
        if self._engine is None or key != self._key:
            self._engine = None  # its buffer makes room for the next
            self._key, self._engine = key, Engine(*arguments, **named)
        self._engine.timings = Timings()
        return self._engine


def engine_key(config: DecodeConfig, rule: Retention) -> Any:
    """What the compiled programs of a run depend on."""
    values = dataclasses.asdict(config).items()
    return repr({name: value for name, value in values if name not in _ELSEWHERE}), rule
