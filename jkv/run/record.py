"""What the engine yields becomes lines of samples.jsonl and trace.jsonl; one thought is kept to be shown."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from jkv.engine.engine import Engine
from jkv.engine.events import Completion, Eviction, Progress, Request
from jkv.grading.answers import opens_thought
from jkv.grading.queue import Marking
from jkv.run.closing import thought
from jkv.run.directory import RunDirectory
from jkv.run.progress import LiveProgress
from jkv.tasks import Problem
from jkv.terminal import termination
from jkv.terminal.screen import Screen
from jkv.terminal.text import pieces, short


class Recorder:
    """Decodes requests, and writes each sample when it is graded.

    tokenizer: None where token ids are all there is.  trace: whether evictions are written, too.
    shown: a completion that evicted, if any did.
    """

    def __init__(
        self,
        engine: Engine,
        problems: Sequence[Problem],
        tokenizer: Any,
        directory: RunDirectory,
        marking: Marking,
        *,
        trace: bool,
    ):
        self.engine, self.tokenizer, self.directory, self.marking = engine, tokenizer, directory, marking
        self.by_id = {p.id: p for p in problems}
        self.trace, self.granularity = trace, engine.setup.rule.granularity
        self.before = {name: directory.timings.get(name, 0.0) for name in ("wall", "compile", "decode", "steps")}
        self.shown: Completion | None = None

    def decode(self, todo: list[Request], live: LiveProgress, *, patience: float) -> None:
        """Compile, then decode. patience: seconds that grades are waited for where it is broken off."""
        self.marking.expect([self.by_id[r.id] for r in todo])
        live.compiling()
        self.engine.compile(len(r.prompt_ids) for r in todo)
        live.start_clock()
        started = time.perf_counter()
        # A sample's time is that of its last token; waiting for a grade is no decoding.
        ended: dict[tuple[str, int], dict[str, float]] = {}

        def keep(within: float | None) -> None:
            for row in self.marking.graded(within):
                self.directory.add_sample(row, ended.pop((row["id"], row["sample"])))
                live.sample_done()

        try:
            for event in self.engine.run(todo, trace=self.trace):
                match event:
                    case Progress():
                        live.tick(event)
                    case Eviction():
                        self.directory.add_trace(self._trace_row(event))
                    case Completion():
                        ended[event.request.id, event.request.sample] = self._timings(time.perf_counter() - started)
                        problem = self.by_id[event.request.id]
                        self.marking.add(self._sample_row(event), problem, thinking=self._thinking(problem))
                        if self.shown is None or (event.evictions and not self.shown.evictions):
                            self.shown = event
                keep(0.0)
        except BaseException as error:
            keep(termination.PATIENCE_S if isinstance(error, termination.Terminated) else patience)
            raise
        keep(None)

    def show_thought(self, screen: Screen, samples: Sequence[dict[str, Any]]) -> None:
        """Print ``shown``, if there is one. samples: the finished ones."""
        if self.shown is not None:
            styled = screen.is_terminal and not screen.is_dumb_terminal
            screen.print(self._thought(self.shown, samples, styled=styled))

    def _timings(self, wall: float) -> dict[str, float]:
        """Seconds and steps of all sessions so far."""
        spent = self.engine.timings
        now = {"wall": wall, "compile": spent.compile, "decode": spent.decode, "steps": spent.steps}
        return {name: value + self.before[name] for name, value in now.items()}

    def _thinking(self, problem: Problem) -> bool:
        """Whether the prompt has begun the thought that the completion is to end."""
        tokenizer = self.tokenizer
        return tokenizer is not None and opens_thought(tokenizer.decode(problem.prompt_ids))

    def _sample_row(self, done: Completion) -> dict[str, Any]:
        """The sample, yet without its answer and grade."""
        tokenizer = self.tokenizer
        text = "" if tokenizer is None else tokenizer.decode(done.token_ids, skip_special_tokens=True)
        # With these a trace can be looked at where neither the tokenizer nor the task is at hand.
        more = {"pieces": pieces(tokenizer, (*done.request.prompt_ids, *done.token_ids))} if self.trace else {}
        steps = len(done.token_ids) - 1
        return {
            "id": done.request.id,
            "sample": done.request.sample,
            "prompt_tokens": len(done.request.prompt_ids),
            "token_ids": done.token_ids,
            "text": text,
            "finish": done.finish,
            "evictions": done.evictions,
            "peak_slots": done.peak_slots,
            "mean_slots": round(done.slot_steps / steps, 3) if steps else float(done.peak_slots),
            **more,
        }

    def _trace_row(self, event: Eviction) -> dict[str, Any]:
        return {
            "id": event.request.id,
            "sample": event.request.sample,
            "event": event.event,
            "position": event.position,
            "granularity": self.granularity,
            "kept": event.kept,
            **({} if event.scores is None else {"scores": plain_scores(event.scores)}),
        }

    def _thought(self, done: Completion, samples: Sequence[dict[str, Any]], *, styled: bool):
        kept = done.kept
        if self.granularity == "head":  # a token is gone when no head has it any more
            kept = sorted({p for layer in kept for head in layer for p in head})
        reference = self.by_id[done.request.id].answer
        row = next(r for r in samples if (r["id"], r["sample"]) == (done.request.id, done.request.sample))
        title = f"{short(done.request.id)}, sample {done.request.sample}"
        if reference is not None:
            said = "no answer" if row["answer"] is None else f"answer {short(row['answer'])}"
            wrong = f"wrong, expected {short(reference)}"
            grade = {True: "right", False: wrong, None: f"ungraded ({row.get('ungraded')})"}[row["correct"]]
            title += f": {said}, {grade}"
        return thought(self.tokenizer, done.request.prompt_ids, done.token_ids, kept, title=title, styled=styled)


def plain_scores(scores: np.ndarray) -> list:
    """Scores as JSON: nested lists of numbers that give the same float32 again; None for what was protected (+inf)."""
    if scores.ndim > 1:
        return [plain_scores(part) for part in scores]
    return [None if score == np.inf else float(f"{score:.9g}") for score in scores.tolist()]


def follow(engine: Engine, todo: Sequence[Request], *, trace: bool) -> None:
    """Decode what a ``Recorder`` on another host does, which holds the same replica: the devices here have a part in
    each of its programs."""
    engine.compile(len(r.prompt_ids) for r in todo)
    for _ in engine.run(todo, trace=trace):
        pass
