"""A probe of memory, built from the demo task: a fact stated once, early in a thought, and asked for at its end.

The fact is the value of ``a``, worked out in the thought's first block and used by no other. The rest of the thought is
about other variables. Prompt and thought are given, up to ``</think> a``; the next token should be the value.
"""

import dataclasses

import numpy as np

from jkv.demo.task import EVALUATION, Problem, draw_problem

FACT = "a"


@dataclasses.dataclass(frozen=True)
class Probe:
    """text: what is given.  fact: index of the word that states the value for good ('so a 7 keep').  value: of a."""

    id: str
    text: str
    fact: int
    value: str

    @property
    def length(self) -> int:
        """Words given; a word is a token."""
        return len(self.text.split())


def probes(n: int, *, seed: int = 0, variables: tuple[int, ...] = (2, 3, 4, 5, 6)) -> list[Probe]:
    """``n`` probes for each number of variables: the more there are, the longer ago the fact was stated."""
    found = []
    for count in variables:
        index = mine = 0
        while mine < n:
            # The fourth word keeps these draws apart from those of the task's own evaluation problems.
            problem = draw_problem(
                np.random.default_rng([EVALUATION, seed, count, index]), count, f"probe-{count}-{mine}"
            )
            index += 1
            if _states_once(problem):
                found.append(_probe(problem))
                mine += 1
    return found


def _states_once(problem: Problem) -> bool:
    used = {x for d in problem.definitions[1:] for x in (d.left, d.right)}
    return FACT in problem.asked and FACT not in used


def _probe(problem: Problem) -> Probe:
    thought = problem.solution().split()
    given = [*problem.prompt.split(), *thought[: thought.index("</think>")], "</think>", FACT]
    so = given.index("so")  # the first block is a's
    value = str(problem.values[FACT])
    assert given[so + 1 : so + 3] == [FACT, value]
    return Probe(problem.id, " ".join(given), so + 2, value)
