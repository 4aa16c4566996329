"""``jkv.view(...)``: the retention view from Python."""

import os
import pathlib

from jkv.errors import UserError
from jkv.report.view.history import common_sample, read_history
from jkv.report.view.shown import View


def view(
    run: str | os.PathLike[str],
    *beside: str | os.PathLike[str],
    id: str | None = None,
    sample: int | None = None,
    eviction: int | None = None,
    height: int = 760,
) -> View:
    """What stayed in the KV buffer while a sample was decoded, token by token.

    Args:
        run: the ``--out`` directory of a decode run made with ``--trace``, or what ``jkv.decode(..., trace=True)``
            returned.
        beside: more such runs of the same task, shown side by side.
        id: the problem's (default: that of the sample with the most evictions).
        sample: the number of the completion, from 0 (default: the one with the most evictions).
        eviction: show it after so many evictions (default: at its end).
        height: of the frame in a notebook, in pixels.

    Returns:
        A view, which a notebook shows inline. Its ``save(path)`` writes a page (.html) or a picture (.png, .svg, .pdf).

    Raises:
        UserError: a directory has no trace, there is no such id or sample, the runs have no common sample, or a file is
            damaged.
    """
    runs = [pathlib.Path(r).expanduser() for r in (run, *beside)]
    id, sample = common_sample(runs, id, sample)
    histories = tuple(read_history(path, id, sample) for path in runs)
    if len({history.pieces[: history.prompt_tokens] for history in histories}) > 1:
        what = f"have different prompts for {id!r}"
        raise UserError(what, where=" and ".join(map(str, runs)), mend="compare runs of the same task and tokenizer")
    return View(histories, eviction, height)
