"""Grading beside the decoding: finished samples wait for their grade while the device goes on."""

import collections
import concurrent.futures
import time
from collections.abc import Iterator
from typing import Any

from jkv.grading import Grader, Verdict
from jkv.grading.answers import extract_answer, extract_letter, is_correct
from jkv.tasks.problem import Problem


class Marking:
    """Adds answer and correct to rows of samples, and hands the rows back in the order in which they came.

    Mathematics goes to ``grader`` (one of its own unless given), one answer after the other, in a thread; other answers
    are compared at once. A sample that can't be graded has correct None and says why in ``ungraded``. A context
    manager.
    """

    def __init__(self, grader: Grader | None = None):
        self._own, self._grader = grader is None, grader or Grader()
        self._waiting: collections.deque[tuple[dict[str, Any], concurrent.futures.Future[Verdict] | None]]
        self._waiting = collections.deque()
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="grading")

    def __enter__(self) -> "Marking":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
        if self._own:
            self._grader.close()
        self._thread.shutdown()

    def expect(self, problems: list[Problem]) -> None:
        """Start what these problems need, so that the first answer finds it ready."""
        if any(p.grading == "math" and p.answer is not None for p in problems):
            self._grader.start()

    def add(self, row: dict[str, Any], problem: Problem, *, thinking: bool) -> None:
        """Take a finished sample's row, which has its text. thinking: whether the prompt has begun a thought."""
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
        """Rows whose grade is there, up to the first that waits for its own. within: seconds to wait, None no end."""
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
