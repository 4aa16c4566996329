"""A memory probe, made from the demo task: a fact is stated once, early in a thought, and asked for at the end.

The fact is the value of ``a``, which the first block of the thought computes and no other block uses. The rest of the
thought is about other variables. The model is given the prompt and the thought up to ``</think> a``; the next token
should be the value.
"""

import dataclasses

import numpy as np

from jkv.demo.task import EVALUATION, Problem, draw_problem

FACT = "a"


@dataclasses.dataclass(frozen=True)
class Probe:
    """One question.

    Attributes:
        id: 'probe-VARIABLES-INDEX'.
        text: what the model is given.
        fact: index in ``text`` of the word that states the value: the 7 in 'so a 7 keep'.
        value: of ``a``, a digit.
    """

    id: str
    text: str
    fact: int
    value: str

    @property
    def length(self) -> int:
        """Words of the text. Each is one token."""
        return len(self.text.split())


def probes(n: int, *, seed: int = 0, variables: tuple[int, ...] = (2, 3, 4, 5, 6)) -> list[Probe]:
    """Generate probes.

    Args:
        n: probes for each number of variables.
        seed: of the draws.
        variables: numbers of variables. With more of them the fact was stated longer ago.
    """
    found = []
    for count in variables:
        index = accepted = 0
        while accepted < n:
            # A seed of four numbers; the evaluation problems' seeds have three, so these are other draws.
            problem = draw_problem(
                np.random.default_rng([EVALUATION, seed, count, index]), count, f"probe-{count}-{accepted}"
            )
            index += 1
            if _states_fact_once(problem):
                found.append(_probe(problem))
                accepted += 1
    return found


def _states_fact_once(problem: Problem) -> bool:
    """Whether the problem asks for ``a`` and no other definition uses it."""
    used = {x for d in problem.definitions[1:] for x in (d.left, d.right)}
    return FACT in problem.asked and FACT not in used


def _probe(problem: Problem) -> Probe:
    thought = problem.solution().split()
    given = [*problem.prompt.split(), *thought[: thought.index("</think>")], "</think>", FACT]
    so = given.index("so")  # the first block is a's
    value = str(problem.values[FACT])
    assert given[so + 1 : so + 3] == [FACT, value]
    return Probe(problem.id, " ".join(given), so + 2, value)
