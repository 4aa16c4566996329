"""A matplotlib figure as files: the same results give the same bytes, each file whole or not at all."""

import pathlib
from collections.abc import Sequence
from typing import Any

from jkv.files.whole import replacing

# matplotlib's name for the date in each format, which would make every file another.
_DATE = {"svg": "Date", "pdf": "CreationDate"}


def save_figure(figure: Any, path: pathlib.Path, kinds: Sequence[str] = ("png", "svg"), *, dpi: int = 200) -> None:
    """Write a figure in each of the formats ``kinds``, under ``path`` with the format's suffix.

    Args:
        figure: a matplotlib Figure.
        path: where to; its suffix is replaced.
        kinds: formats that matplotlib knows.
        dpi: pixels an inch, where there are pixels.
    """
    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": "jkv"}):  # ids of an SVG's parts are random otherwise
        for kind in kinds:
            with replacing(path.with_suffix(f".{kind}")) as scratch:
                date = _DATE.get(kind.lower())
                figure.savefig(scratch, format=kind, dpi=dpi, metadata={date: None} if date else None)
