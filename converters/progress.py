"""A progress bar on stderr for what takes longer than two seconds; none where stderr isn't a terminal."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
_SHOWN_AFTER_S = 2.0


def track(items: Iterable[Item], description: str, total: int) -> Iterator[Item]:
    """Yield ``items``, and after two seconds show how many of them are done.

    Args:
        items: what is worked through.
        description: what the bar is called.
        total: how many items there are.
    """
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import Progress

    begin, progress, task = time.monotonic(), None, None
    try:
        for done, item in enumerate(items):
            if progress is None and time.monotonic() - begin > _SHOWN_AFTER_S:
                progress = Progress(console=Console(stderr=True), transient=True)
                progress.start()
                task = progress.add_task(description, total=total)
            if progress is not None and task is not None:
                progress.update(task, completed=done)
            yield item
    finally:
        if progress is not None:
            progress.stop()
