"""What tests of TPU kernels share: the interpreter that simulates a TPU's memories, and a count of what it moves."""

import contextlib
import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax._src.pallas.mosaic.interpret import interpret_pallas_call as interpreter
from jax.experimental.pallas import tpu as pltpu

# Two accesses of one place without an order between them fail a test, and memory that nothing has written is NaN.
INTERPRET = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")


def assert_no_race() -> None:
    """The kernel that ran last had no data race."""
    assert interpreter.races is not None
    assert not interpreter.races.races_found


class Moved(NamedTuple):
    """Blocks that went between HBM and a kernel's own memory: operand's name and block index, in order."""

    fetched: list[tuple[str, tuple[int, ...]]]
    written: list[tuple[str, tuple[int, ...]]]

    def of(self, name: str) -> list[tuple[int, ...]]:
        """Indices of the blocks of one operand."""
        return [index for operand, index in (*self.fetched, *self.written) if operand == name]


@contextlib.contextmanager
def count_blocks() -> Iterator[Moved]:
    """Records every block that the interpreter moves for kernels called inside."""
    moved = Moved([], [])
    get, store = interpreter.get, interpreter.store

    @functools.wraps(get)
    def recording_get(*args, input_name=None, **kwargs):
        if input_name is not None:
            moved.fetched.append((input_name, tuple(int(i) for i in np.asarray(args[6]))))
        return get(*args, input_name=input_name, **kwargs)

    @functools.wraps(store)
    def recording_store(*args, output_name=None, **kwargs):
        if output_name is not None:
            moved.written.append((output_name, tuple(int(i) for i in np.asarray(args[7]))))
        return store(*args, output_name=output_name, **kwargs)

    jax.clear_caches()  # the interpreter binds its callbacks when a kernel is traced
    interpreter.get, interpreter.store = recording_get, recording_store
    try:
        yield moved
    finally:
        interpreter.get, interpreter.store = get, store
        jax.clear_caches()
