"""Write matplotlib figures to files: each file whole or not at all, and the same figure as the same bytes."""

import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jkv.files.whole import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# matplotlib writes the date into these formats under these names. It is left out, so that files can be compared.
_DATE = {"svg": "Date", "pdf": "CreationDate"}


def save_figure(figure: "Figure", path: pathlib.Path, kinds: Sequence[str] = ("png", "svg"), *, dpi: int = 200) -> None:
    """Write a figure in each of the formats ``kinds``, to ``path`` with the format as its suffix.

    Args:
        figure: what to write.
        path: where to write it; its suffix is replaced.
        kinds: file formats that matplotlib can write.
        dpi: resolution in pixels an inch, for formats made of pixels.

    Raises:
        OSError: a file can't be written.
        ValueError: matplotlib can't write the format.
    """
    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": "jkv"}):  # without a fixed salt the ids in an SVG are random
        for kind in kinds:
            with replacing(path.with_suffix(f".{kind}")) as scratch:
                date = _DATE.get(kind.lower())
                figure.savefig(scratch, format=kind, dpi=dpi, metadata={date: None} if date else None)
