"""The retention view as one HTML file: data, style and script are inside, and nothing is fetched.

What a model wrote stands in the page as JSON within a script element of type application/json, with every ``<`` and
``&`` as an escape; the script sets it as text, never as markup. Should that ever fail, the page's own content security
policy lets no script run but its own (by hash) and nothing be loaded.
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

# Scores in one page at most (4 bytes each): beyond it, those of every k-th eviction.
MOST_SCORES = 1_500_000
_FEWEST_SNAPSHOTS = 8
_UNSAFE = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def render_page(histories: Sequence[History], *, eviction: int | None = None) -> str:
    """The page of one sample, by one run or by several side by side. eviction: how many of the first run's evictions
    are over when it opens (default: everything is written)."""
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
    # Split once: what is put in may hold the marks.
    page = asset("page.html").split("@")
    return "".join(parts.get(part, part) if index % 2 else part for index, part in enumerate(page))


def asset(name: str) -> str:
    """A file that ships beside this one."""
    return resources.files("jkv.report.view").joinpath(name).read_text("utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def encode(history: History) -> dict[str, Any]:
    """A run as the page's script reads it. Keep sets aren't listed: for each token the eviction that dropped it says
    the same."""
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
    """Scores of as many evictions as fit, evenly spread: the ``events`` shown, how many scores each of their rows has
    (``sizes``), and all rows one after the other, a row a keep set.

    Where not even a few evictions fit with a row a head, the row is the ``mean`` over the heads that hold a token.
    """
    if history.scores is None:
        return None
    counts = [scores.size for scores in history.scores]
    sets = history.gone.shape[0] * history.gone.shape[1]
    mean = sets > 1 and _stride(counts, most) * _FEWEST_SNAPSHOTS > max(_FEWEST_SNAPSHOTS, len(counts))
    rows = [_mean_of_heads(history, event) for event in range(len(counts))] if mean else history.scores
    stride = _stride([row.size for row in rows], most)
    # The last one always: it is what the page shows first.
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
    """[m]: of every token that some head held before an eviction, its mean score over those heads."""
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
    """The policy, and the run's directory where there is no summary to name it."""
    return visible(history.rule.policy or history.run)


def detail(history: History) -> str:
    """The budget words, and how the sample ended, on one line."""
    rule = history.rule
    words = [rule.model] if rule.model else []
    if rule.budget is None:
        words.append("no summary.json yet: budget words unknown")
    else:
        words += [f"budget {rule.budget:,}", f"retain {rule.retain:,}", f"window {rule.window:,}"]
        words += [f"sinks {rule.sinks:,}"] if rule.sinks else []
        words += ["prompt pinned"] if rule.pin_prompt else []
    if history.gone.shape[:2] != (1, 1):
        words.append("a keep set per layer and KV head")
    if history.answer is not None:
        grade = {True: " (right)", False: " (wrong)", None: ""}[history.correct]
        words.append(f"answer {history.answer[:40]}{grade}")
    if history.finish == "length":
        words.append("cut off at the token limit")
    if history.text_missing:
        words.append("the run has no pieces, tokens are shown by id")
    return visible(", ".join(" ".join(word.split()) for word in words))
