"""Part of an array in a file: only the bytes that are wanted are read, and none are mapped (mapped pages that have been
touched count as the process's memory)."""

import errno
import os
from collections.abc import Sequence

import numpy as np

PAGE = 4096  # bytes: a shorter gap saves nothing, as the system reads whole pages
BLOCK = 1 << 24  # bytes read at a time where gaps are that short
_MOST = 1 << 30  # bytes a call


def read_box(
    file: int, offset: int, shape: Sequence[int], dtype: np.dtype, box: Sequence[slice] | None = None
) -> np.ndarray:
    """The part ``box`` (a slice with start and stop an axis; all of it by default) of a C-ordered array.

    file: descriptor.  offset: bytes before the array.  shape: of one or two axes, or any when ``box`` isn't given.
    Raises OSError when it can't be read, or ends too early.
    """
    if box is None or all((s.start, s.stop) == (0, n) for s, n in zip(box, shape, strict=True)):
        whole = np.empty(shape, dtype)
        _fill(file, offset, _bytes(whole))
        return whole
    if len(shape) == 1:
        return read_box(file, offset, (1, *shape), dtype, (slice(0, 1), *box))[0]
    (rows, columns), width = box, shape[1]
    part = np.empty((rows.stop - rows.start, columns.stop - columns.start), dtype)
    item, offset = dtype.itemsize, offset + rows.start * width * dtype.itemsize
    if part.shape[1] == width:
        _fill(file, offset, _bytes(part))
    elif (width - part.shape[1]) * item >= PAGE:
        for row, into in enumerate(part):
            _fill(file, offset + (row * width + columns.start) * item, _bytes(into))
    else:
        at_once = max(1, BLOCK // (width * item))
        for row in range(0, len(part), at_once):
            block = np.empty((min(at_once, len(part) - row), width), dtype)
            _fill(file, offset + row * width * item, _bytes(block))
            part[row : row + at_once] = block[:, columns]
    return part


def _bytes(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _fill(file: int, offset: int, into: memoryview) -> None:
    while into:
        count = os.preadv(file, [into[:_MOST]], offset)
        if not count:
            raise OSError(errno.EIO, "ends too early")
        into, offset = into[count:], offset + count
