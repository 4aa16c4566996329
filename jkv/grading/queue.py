"""Grading in the background: finished samples wait here for their grade while the device goes on decoding."""

import collections
import concurrent.futures
import time
from collections.abc import Iterator
from typing import Any

from jkv.grading import Grader, Verdict
from jkv.grading.answers import extract_answer, extract_letter, is_correct
from jkv.tasks.problem import Problem


class GradingQueue:
    """A queue of finished samples that wait for their grade.

    ``add`` takes a sample's row; ``graded`` yields the rows in the order in which they were added, completed by answer
    and correct. Mathematical answers go to the grader's worker process one after the other, from a thread, so that the
    caller needn't wait; other answers are compared in ``add``. A sample that could not be graded has correct None and
    the reason in ``ungraded``.

    A context manager: when it is left, samples that still wait are dropped.

    Args:
        grader: compares mathematical answers, and is left open. None: the queue has its own and closes it.
    """

    def __init__(self, grader: Grader | None = None):
        self._owns_grader, self._grader = grader is None, grader or Grader()
        self._waiting: collections.deque[tuple[dict[str, Any], concurrent.futures.Future[Verdict] | None]]
        self._waiting = collections.deque()
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="grading")

    def __enter__(self) -> "GradingQueue":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
        if self._owns_grader:
            self._grader.close()
        self._thread.shutdown()

    def expect(self, problems: list[Problem]) -> None:
        """Start the worker now if one of ``problems`` will need it, so that it is ready for the first answer."""
        if any(p.grading == "math" and p.answer is not None for p in problems):
            self._grader.start()

    def add(self, row: dict[str, Any], problem: Problem, *, thinking: bool) -> None:
        """Add a finished sample.

        Args:
            row: its line of samples.jsonl, with its text, still without answer and correct.
            problem: what it answers.
            thinking: whether the prompt already contains the <think> that the text has to end.
        """
        answer = extract_answer(row["text"], thinking=thinking)
        if problem.grading == "letter":
            answer = extract_letter(answer) or answer
        pending = None
        if problem.grading == "math" and problem.answer is not None and answer:
            row = {**row, "answer": answer, "correct": None}
            pending = self._thread.submit(self._grader.grade, answer, problem.answer)
        else:
            row = {**row, "answer": answer, "correct": is_correct(answer, problem.answer)}
        self._waiting.append((row, pending))

    def graded(self, within: float | None = 0.0) -> Iterator[dict[str, Any]]:
        """Remove and yield the rows that have their grade, up to the first one that has none yet.

        Args:
            within: seconds to wait for grades, for all rows together; None waits until all have theirs.
        """
        deadline = None if within is None else time.monotonic() + within
        while self._waiting:
            row, pending = self._waiting[0]
            if pending is not None:
                try:
                    left = None if deadline is None else max(0.0, deadline - time.monotonic())
                    verdict = pending.result(left)
                except TimeoutError:
                    return
                row["correct"] = verdict.correct
                if verdict.correct is None:
                    row["ungraded"] = verdict.reason
            self._waiting.popleft()
            yield row
