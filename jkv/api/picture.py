"""A picture file that a notebook shows."""

import dataclasses
import pathlib
import struct


@dataclasses.dataclass(frozen=True)
class Picture:
    """A PNG file. It is drawn for print: a notebook shows it at half its width in pixels.

    Attributes:
        path: the file.
    """

    path: pathlib.Path

    def __fspath__(self) -> str:
        return str(self.path)

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        data = self.path.read_bytes()
        (width,) = struct.unpack(">I", data[16:20])
        return data, {"width": width // 2}


def picture(path: pathlib.Path) -> Picture | None:
    """The picture in file ``path``; None if there is no such file."""
    return Picture(path) if path.is_file() else None
