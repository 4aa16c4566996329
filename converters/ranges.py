"""Reading a part of an array from a file, without the rest of it.

Files are read and not mapped: pages of a mapped file count as the process's memory once they have been touched.
"""

import errno
import os
from collections.abc import Sequence

import numpy as np

PAGE = 4096  # bytes: skipping less saves nothing, since the system reads whole pages
BLOCK = 1 << 24  # bytes that are read at a time where there is less to skip
_MOST = 1 << 30  # bytes of one call to the system


def read_box(
    file: int, offset: int, shape: Sequence[int], dtype: np.dtype, box: Sequence[slice] | None = None
) -> np.ndarray:
    """A part of an array that lies in a file in C order.

    Args:
        file: the open file's descriptor.
        offset: bytes of the file before the array.
        shape: the array's: one or two axes, or any number of them without a box.
        dtype: the array's.
        box: a slice with start and stop for each axis; the whole array if None.

    Raises:
        OSError: the file can't be read, or ends too early.
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
    """The memory of a C-ordered array, to write to."""
    return array.reshape(-1).view(np.uint8).data


def _fill(file: int, offset: int, into: memoryview) -> None:
    """Read as many bytes as ``into`` has, from ``offset`` of the file on. Raises OSError if it ends before."""
    while into:
        count = os.preadv(file, [into[:_MOST]], offset)
        if not count:
            raise OSError(errno.EIO, "ends too early")
        into, offset = into[count:], offset + count
