"""A picture on disk that a notebook shows."""

import dataclasses
import pathlib
import struct


@dataclasses.dataclass(frozen=True)
class Picture:
    """A PNG file; ``path`` is where it lies. Drawn for print: a notebook shows it at half its pixels."""

    path: pathlib.Path

    def __fspath__(self) -> str:
        return str(self.path)

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        data = self.path.read_bytes()
        (width,) = struct.unpack(">I", data[16:20])
        return data, {"width": width // 2}


def picture(path: pathlib.Path) -> Picture | None:
    """The picture, or None if none was drawn."""
    return Picture(path) if path.is_file() else None
