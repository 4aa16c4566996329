"""The retention view as a single HTML file, which contains its data, style and script and loads nothing.

The model's text is stored in the page as JSON, in a script element of type application/json, with every ``<``, ``>``
and ``&`` escaped. The page's script inserts it as text, never as markup. Should that ever fail, the page's content
security policy still allows no script but its own (identified by its hash), and loads nothing.
"""

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

import numpy as np

from jkv.report.view.history import History
from jkv.terminal.text import visible

# A page holds at most so many scores, of 4 bytes each. If there are more, it has those of every k-th eviction.
MOST_SCORES = 1_500_000
# If scores of each head fit for fewer than so many evictions, the page has the mean over the heads instead.
_FEWEST_SNAPSHOTS = 8
_UNSAFE = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def render_page(histories: Sequence[History], *, eviction: int | None = None) -> str:
    """The HTML text of the page.

    Args:
        histories: of the same sample, in one run or in several, which are shown side by side.
        eviction: the page opens at the moment after so many of the first run's evictions; None: at the end.
    """
    first = histories[0]
    title = f"{first.id}, sample {first.sample}"
    script = "\n".join(('"use strict";', *(asset(name) for name in ("model.js", "chart.js", "page.js"))))
    style = asset("page.css")
    data = {
        "title": visible(title),
        "subtitle": "What stayed in the KV buffer while this was decoded.",
        "eviction": eviction,
        "runs": [encode(history) for history in histories],
    }
    parts = {
        "policy": f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'",
        "title": html.escape(visible(title)),
        "style": style,
        "script": script,
        "data": json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).translate(_UNSAFE),
    }
    # Split the template before anything is inserted: the inserted texts may contain the separator.
    page = asset("page.html").split("@")
    return "".join(parts.get(part, part) if index % 2 else part for index, part in enumerate(page))


def asset(name: str) -> str:
    """The text of a file in this package: page.html, page.css or a script."""
    return resources.files("jkv.report.view").joinpath(name).read_text("utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def encode(history: History) -> dict[str, Any]:
    """A run's data as the page's script reads it (the constructor of Run in model.js).

    It has no keep sets: for each token it has the eviction that dropped it, from which they follow.
    """
    wide = history.evictions >= 2**16
    return {
        "label": label(history),
        "detail": detail(history),
        "n": history.tokens,
        "prompt": history.prompt_tokens,
        "thoughtEnd": history.thought_end,
        "pieces": [visible(piece) for piece in history.pieces],
        "positions": history.positions.tolist(),
        "kept": history.kept.tolist(),
        "layers": history.gone.shape[0],
        "heads": history.gone.shape[1],
        "wide": wide,
        "gone": _bytes(history.gone, "<u4" if wide else "<u2"),
        "scores": encode_scores(history),
        "rule": {
            "budget": history.rule.budget,
            "window": history.rule.window,
            "sinks": history.rule.sinks,
            "pin_prompt": history.rule.pin_prompt,
        },
    }


def encode_scores(history: History, most: int = MOST_SCORES) -> dict[str, Any] | None:
    """The scores of as many evictions as fit into the page, evenly spaced.

    Args:
        history: of the sample.
        most: how many scores fit.

    Returns:
        ``events``, the evictions; ``mean``, whether there is only the mean over the heads that hold a token, because
        scores of each head would fit for too few evictions; ``sizes``, for each event how many scores a row has;
        ``data``, all rows one after the other, for each event a row for each keep set (with ``mean``: one row), as
        base64 of little-endian float32. None if the trace has no scores.
    """
    if history.scores is None:
        return None
    counts = [scores.size for scores in history.scores]
    sets = history.gone.shape[0] * history.gone.shape[1]
    mean = sets > 1 and _stride(counts, most) * _FEWEST_SNAPSHOTS > max(_FEWEST_SNAPSHOTS, len(counts))
    rows = [_mean_of_heads(history, event) for event in range(len(counts))] if mean else history.scores
    stride = _stride([row.size for row in rows], most)
    # Count from the last one, which the page shows when it opens.
    events = sorted(range(len(rows) - 1, -1, -stride))
    return {
        "events": events,
        "sizes": [rows[event].shape[-1] for event in events],
        "mean": mean,
        "data": _bytes(np.concatenate([rows[event].ravel() for event in events]), "<f4"),
    }


def _stride(counts: Sequence[int], most: int) -> int:
    return max(1, -(-sum(counts) // most))


def _mean_of_heads(history: History, event: int) -> np.ndarray:
    """[m]: the mean score of each of the m tokens that some head held before an eviction, over the heads that did."""
    assert history.scores is not None
    written = np.arange(history.tokens) <= history.positions[event]
    there = (history.gone >= event) & written
    total, holding = np.zeros(history.tokens), there.sum((0, 1))
    for heads, scores in zip(there, history.scores[event], strict=True):
        for head, row in zip(heads, scores, strict=True):
            total[head] += row
    held = holding > 0
    return (total[held] / holding[held]).astype(np.float32)


def _bytes(array: np.ndarray, kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(array, kind).tobytes()).decode()


def label(history: History) -> str:
    """The policy's name, or the run's directory if the run has no summary.json yet."""
    return visible(history.rule.policy or history.run)


def detail(history: History) -> str:
    """One line of text: model, budget settings, answer, and how the sample ended."""
    rule = history.rule
    parts = [rule.model] if rule.model else []
    if rule.budget is None:
        parts.append("no summary.json yet: budget settings unknown")
    else:
        parts += [f"budget {rule.budget:,}", f"retain {rule.retain:,}", f"window {rule.window:,}"]
        parts += [f"sinks {rule.sinks:,}"] if rule.sinks else []
        parts += ["prompt pinned"] if rule.pin_prompt else []
    if history.gone.shape[:2] != (1, 1):
        parts.append("a keep set for each layer and KV head")
    if history.answer is not None:
        grade = {True: " (right)", False: " (wrong)", None: ""}[history.correct]
        parts.append(f"answer {history.answer[:40]}{grade}")
    if history.finish == "length":
        parts.append("cut off at the token limit")
    if history.text_missing:
        parts.append("the run has no token texts, tokens are shown by id")
    return visible(", ".join(" ".join(part.split()) for part in parts))
