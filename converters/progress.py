"""A progress bar for what takes longer than two seconds, on a terminal only."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
_PATIENCE_S = 2.0


def track(items: Iterable[Item], description: str, total: int) -> Iterator[Item]:
    """Yield ``items``; once two seconds have passed, show how far along they are on stderr."""
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import Progress

    begin, progress, task = time.monotonic(), None, None
    try:
        for done, item in enumerate(items):
            if progress is None and time.monotonic() - begin > _PATIENCE_S:
                progress = Progress(console=Console(stderr=True), transient=True)
                progress.start()
                task = progress.add_task(description, total=total)
            if progress is not None and task is not None:
                progress.update(task, completed=done)
            yield item
    finally:
        if progress is not None:
            progress.stop()
