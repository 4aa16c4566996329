"""Turns what the engine yields into lines of samples.jsonl and trace.jsonl."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.panel import Panel

from jkv.engine.engine import Engine
from jkv.engine.events import Completion, Eviction, Progress, Request
from jkv.grading.answers import opens_thought
from jkv.grading.queue import GradingQueue
from jkv.run.closing import thought
from jkv.run.directory import RunDirectory
from jkv.run.progress import LiveProgress
from jkv.tasks import Problem
from jkv.terminal import termination
from jkv.terminal.screen import Screen
from jkv.terminal.text import pieces, short

# Seconds of termination.GRACE_S that a terminated run waits for the grades of samples that are already decoded.
GRADES_AFTER_SIGTERM_S = 2.0


class Recorder:
    """Decodes requests, and writes each sample when it is graded.

    Attributes:
        shown: the completion that `show_thought` prints: the first that evicted, or the first of all if none did; None
            before any has finished.
    """

    def __init__(
        self,
        engine: Engine,
        problems: Sequence[Problem],
        tokenizer: Any,
        directory: RunDirectory,
        queue: GradingQueue,
        *,
        trace: bool,
    ):
        """
        Args:
            engine: decodes.
            problems: the task's, of which the requests are samples.
            tokenizer: the model's transformers tokenizer; None if it has none, and the samples' text is then empty.
            directory: where samples and evictions are written.
            queue: grades the samples.
            trace: whether evictions are written, too.
        """
        self.engine, self.tokenizer, self.directory, self.queue = engine, tokenizer, directory, queue
        self.by_id = {p.id: p for p in problems}
        self.trace, self.granularity = trace, engine.setup.rule.granularity
        self.before = {name: directory.timings.get(name, 0.0) for name in ("wall", "compile", "decode", "steps")}
        self.shown: Completion | None = None

    def decode(self, todo: list[Request], live: LiveProgress, *, patience: float) -> None:
        """Compile, decode all requests, and write every sample.

        Args:
            todo: the requests.
            live: shows the progress.
            patience: seconds to wait for the grades of decoded samples when decoding is broken off.

        Raises:
            UserError: a file can't be written.
            NotImplementedError: there is no kernel for this hardware.
            jax.errors.JaxRuntimeError: the device failed, for lack of memory for example.
        """
        self.queue.expect([self.by_id[r.id] for r in todo])
        live.compiling()
        self.engine.compile(len(r.prompt_ids) for r in todo)
        live.start_clock()
        started = time.perf_counter()
        # The time of each sample is taken at its last token: waiting for its grade doesn't count as decoding.
        ended: dict[tuple[str, int], dict[str, float]] = {}

        def write_graded(within: float | None) -> None:
            """Write samples in order, up to the first whose grade doesn't come within so many seconds (None: all)."""
            for row in self.queue.graded(within):
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
                        self.queue.add(self._sample_row(event), problem, thinking=self._opens_thought(problem))
                        if self.shown is None or (event.evictions and not self.shown.evictions):
                            self.shown = event
                write_graded(0.0)
        except BaseException as error:
            write_graded(GRADES_AFTER_SIGTERM_S if isinstance(error, termination.Terminated) else patience)
            raise
        write_graded(None)

    def show_thought(self, screen: Screen, samples: Sequence[dict[str, Any]]) -> None:
        """Print the completion ``shown``, if there is one, with what was evicted from it.

        Args:
            screen: where to.
            samples: rows of the finished samples, among them this one's with its grade.
        """
        if self.shown is not None:
            styled = screen.is_terminal and not screen.is_dumb_terminal
            screen.print(self._thought(self.shown, samples, styled=styled))

    def _timings(self, wall: float) -> dict[str, float]:
        """Seconds and steps of all sessions so far, the current one's ``wall`` seconds included."""
        spent = self.engine.timings
        now = {"wall": wall, "compile": spent.compile, "decode": spent.decode, "steps": spent.steps}
        return {name: value + self.before[name] for name, value in now.items()}

    def _opens_thought(self, problem: Problem) -> bool:
        """Whether the prompt ends inside a thought, which the completion then continues."""
        tokenizer = self.tokenizer
        return tokenizer is not None and opens_thought(tokenizer.decode(problem.prompt_ids))

    def _sample_row(self, done: Completion) -> dict[str, Any]:
        """The sample's line, without its answer and grade."""
        tokenizer = self.tokenizer
        text = "" if tokenizer is None else tokenizer.decode(done.token_ids, skip_special_tokens=True)
        # The text of each token, so that a trace can be viewed without the tokenizer or the task.
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

    def _thought(self, done: Completion, samples: Sequence[dict[str, Any]], *, styled: bool) -> Panel:
        kept = done.kept
        if self.granularity == "head":  # a token counts as kept while any head has it
            kept = sorted({p for layer in kept for head in layer for p in head})
        reference = self.by_id[done.request.id].answer
        row = next(r for r in samples if (r["id"], r["sample"]) == (done.request.id, done.request.sample))
        title = f"{short(done.request.id)}, sample {done.request.sample}"
        if reference is not None:
            given = "no answer" if row["answer"] is None else f"answer {short(row['answer'])}"
            wrong = f"wrong, expected {short(reference)}"
            grade = {True: "right", False: wrong, None: f"ungraded ({row.get('ungraded')})"}[row["correct"]]
            title += f": {given}, {grade}"
        return thought(self.tokenizer, done.request.prompt_ids, done.token_ids, kept, title=title, styled=styled)


def plain_scores(scores: np.ndarray) -> list[Any]:
    """Scores as JSON values.

    Args:
        scores: float32 [S], or [L, K, S] with granularity head; +inf for protected tokens.

    Returns:
        The same in nested lists, None for +inf. Nine significant digits give the same float32 when they are read.
    """
    if scores.ndim > 1:
        return [plain_scores(part) for part in scores]
    return [None if score == np.inf else float(f"{score:.9g}") for score in scores.tolist()]


def follow(engine: Engine, todo: Sequence[Request], *, trace: bool) -> None:
    """Decode in step with another host, which holds the same replica of the model and records the samples. The devices
    here take part in each of its programs.

    Args:
        engine: as on that host.
        todo: the same requests in the same order.
        trace: as on that host.
    """
    engine.compile(len(r.prompt_ids) for r in todo)
    for _ in engine.run(todo, trace=trace):
        pass
