"""What ``jkv.view`` returns: a page that a notebook shows, and that can be saved to a file."""

import dataclasses
import html
import pathlib

from jkv.errors import UserError
from jkv.files.whole import write_text
from jkv.report.view.history import History
from jkv.report.view.page import render_page

PICTURES = (".png", ".svg", ".pdf")


@dataclasses.dataclass(frozen=True, repr=False)
class View:
    """The retention view of one sample.

    Attributes:
        histories: of the sample, in one run or in several, which are shown side by side.
        eviction: it shows the moment after so many of the first run's evictions; None: the end.
        height: in a notebook, in pixels.

    Raises:
        UserError: the first run has fewer evictions than ``eviction``, or it is negative.
    """

    histories: tuple[History, ...]
    eviction: int | None = None
    height: int = 760

    def __post_init__(self):
        most = self.histories[0].evictions
        if self.eviction is not None and not 0 <= self.eviction <= most:
            what = f"{self.eviction} is not among the {most} evictions of {self.histories[0].id!r}"
            raise UserError(what, where="--eviction", mend=f"give 0 to {most}")

    def __repr__(self) -> str:
        first, *others = self.histories
        beside = f", beside {len(others)} more" if others else ""
        return f"View({first.id!r}, sample {first.sample}{beside}); save(path) writes it"

    @property
    def html(self) -> str:
        """The page as HTML text."""
        return render_page(self.histories, eviction=self.eviction)

    def _repr_html_(self) -> str:
        """The page in an iframe, so that its styles don't affect the notebook and its scripts can't reach it."""
        attributes = f'title="KV retention view" style="width: 100%; height: {self.height:d}px; border: 0"'
        return f'<iframe {attributes} sandbox="allow-scripts" srcdoc="{html.escape(self.html)}"></iframe>'

    def save(self, path: str | pathlib.Path) -> None:
        """Write the page or the picture.

        Args:
            path: ends in .html for the page, in .png, .svg or .pdf for the picture. Its directory is made if missing.

        Raises:
            UserError: the path has another suffix.
            OSError: the file can't be written.
        """
        path = pathlib.Path(path)
        kind = path.suffix.lower()
        if kind in (".html", ".htm"):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, self.html)
        elif kind in PICTURES:
            from jkv.report.view.picture import draw_view

            path.parent.mkdir(parents=True, exist_ok=True)
            draw_view(path, self.histories, eviction=self.eviction)
        else:
            mend = f"end it in .html, {', '.join(PICTURES)}"
            raise UserError("is neither a page nor a picture", where=str(path), mend=mend)
