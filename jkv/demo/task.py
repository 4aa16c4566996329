"""The demo task: small systems of equations that need a long thought and a long memory.

A problem defines 2 to 6 variables modulo 10, in shuffled order, and asks for up to three of them. The thought computes
them in alphabetical order, one block for each variable, and the answer has the values asked for. What a block needs (a
definition in the prompt, the ``so c 3 keep`` of another block) was written dozens to hundreds of tokens earlier, with
filler in between. So a decoder that evicts the wrong tokens answers wrongly.

    <bos> b = a * 9 ; a = 8 + 9 ? b <think>
    now a = 8 + 9 = 7 . so a 7 keep . check 7 - 9 = 8 ok . (two filler sentences)
    now b = a * 9 = 7 * 9 = 3 . so b 3 keep . check 9 * 7 = 3 ok . (two filler sentences)
    </think> b 3 <eos>

Problems are pure functions of (stream, seed, index). Evaluation and training have different streams, so no choice of
seeds makes both draw the same random numbers. Small problems can still be equal by chance (see README.md).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

NAMES = "abcdef"
DIGITS = "0123456789"
OPERATORS = "+-*"
MAX_ASKED = 3

# The first number of the random seed, which keeps the two streams apart.
EVALUATION, TRAINING = 0, 1

# Two pools of sentences of eight words, the full stop included. Except for it, no word occurs outside of filler.
FILLER = (
    (
        "wait let me think about this again .",
        "hmm this part looks fine to me .",
        "the sum is small and easy here .",
        "let me go over that step slowly .",
        "that was one more step of many .",
    ),
    (
        "the rest of them can wait here .",
        "we will need some of these later .",
        "there are not many steps left here .",
        "time to look at the next line .",
        "on we go with what comes next .",
    ),
)


@dataclasses.dataclass(frozen=True)
class Definition:
    """The definition ``name = left op right``.

    Attributes:
        name: of the variable.
        left: a digit or the name of an earlier variable.
        op: one of OPERATORS.
        right: a digit or the name of an earlier variable.
    """

    name: str
    left: str
    op: str
    right: str

    def __str__(self) -> str:
        return f"{self.name} = {self.left} {self.op} {self.right}"


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem, with its reference solution and its grader.

    Attributes:
        id: unique among the problems of a seed.
        definitions: in alphabetical order of their names.
        shown: indices of the definitions, in the order in which the prompt lists them.
        asked: names of the variables asked for, in alphabetical order.
        filler: for each definition, the index of the sentence from each pool that follows its block.
    """

    id: str
    definitions: tuple[Definition, ...]
    shown: tuple[int, ...]
    asked: tuple[str, ...]
    filler: tuple[tuple[int, int], ...]

    @property
    def prompt(self) -> str:
        """The text to complete, words separated by single spaces, from ``<bos>`` to ``<think>``."""
        return f"<bos> {self.question} <think>"

    @property
    def question(self) -> str:
        """The user's message: the definitions and the names asked for. The chat template turns it into ``prompt``."""
        return f"{' ; '.join(str(self.definitions[i]) for i in self.shown)} ? {' '.join(self.asked)}"

    @property
    def values(self) -> dict[str, int]:
        """The value of each variable, 0 to 9."""
        known: dict[str, int] = {}
        for d in self.definitions:
            known[d.name] = _apply(d.op, *(known[x] if x in known else int(x) for x in (d.left, d.right)))
        return known

    @property
    def answer(self) -> str:
        """The names asked for with their values, as in 'd 0 e 0 f 1'."""
        values = self.values
        return " ".join(f"{name} {values[name]}" for name in self.asked)

    def solution(self, *, filler: bool = True) -> str:
        """The reference completion of ``prompt``, from the first word of the thought to ``<eos>``."""
        return " ".join(text for text, _ in self.segments(filler=filler))

    def segments(self, *, filler: bool = True) -> list[tuple[str, bool]]:
        """``solution`` in segments (text, whether it is filler), which have different weights in training."""
        values = self.values
        needed = {*self.asked, *(x for d in self.definitions for x in (d.left, d.right))}
        segments = []
        for d, (first, second) in zip(self.definitions, self.filler, strict=True):
            segments.append((_block(d, values, d.name in needed), False))
            if filler:
                segments.append((f"{FILLER[0][first]} {FILLER[1][second]}", True))
        return [*segments, (f"</think> {self.answer} <eos>", False)]

    def grade(self, text: str) -> bool:
        """Whether the text after the first ``</think>``, without a final ``<eos>``, has exactly the answer's words."""
        _, thought_ended, answer = text.partition("</think>")
        return bool(thought_ended) and answer.rstrip().removesuffix("<eos>").split() == self.answer.split()


def problems(n: int, seed: int = 0) -> list[Problem]:
    """The first ``n`` evaluation problems of ``seed``, with the ids 'demo-00000', 'demo-00001', ...

    A problem depends only on (seed, index), so a shorter list is the beginning of a longer one.
    """
    return [draw_problem(np.random.default_rng([EVALUATION, seed, i]), None, f"demo-{i:05d}") for i in range(n)]


def generate(
    seed: int, n: int, *, variables: Sequence[int | None] = (None,), crowded: float = 0.0, index: int = 0
) -> list[Problem]:
    """Generate the training problems of one step.

    Args:
        seed: of the run.
        n: problems.
        variables: the number of variables of each problem, repeated as often as needed; None draws 2 to 6.
        crowded: the fraction (0 to 1) of problems that use only two different digits. Their definitions look alike, so
            a model that finds a definition by its operands instead of its name is often wrong and soon learns better.
        index: of the training step.
    """
    rng = np.random.default_rng([TRAINING, seed, index])
    return [draw_problem(rng, variables[i % len(variables)], f"train-{index}-{i}", crowded) for i in range(n)]


def draw_problem(rng: np.random.Generator, variables: int | None, id: str, crowded: float = 0.0) -> Problem:
    """Draw one problem.

    Args:
        rng: where the random numbers come from.
        variables: how many; None draws 2 to 6.
        id: the problem's id.
        crowded: the probability of a problem that uses only two different digits.
    """
    digits = DIGITS
    if crowded and rng.random() < crowded:
        digits = "".join(rng.choice(list(DIGITS), 2, replace=False).tolist())
    n = variables if variables is not None else int(rng.integers(2, len(NAMES) + 1))
    names = NAMES[:n]
    n_asked = int(rng.integers(1, min(MAX_ASKED, n) + 1))
    asked = tuple(sorted(rng.choice(list(names), n_asked, replace=False).tolist()))
    definitions = []
    for i, name in enumerate(names):
        # Operands refer to variables that are asked for, if there are any: their values are then needed in a later
        # block and again in the answer.
        earlier = [x for x in names[:i] if x in asked] or list(names[:i])
        left, right = (
            str(rng.choice(earlier)) if earlier and rng.random() < chance else digits[rng.integers(len(digits))]
            for chance in (0.6, 0.3)
        )
        definitions.append(Definition(name, left, OPERATORS[rng.integers(3)], right))
    return Problem(
        id=id,
        definitions=tuple(definitions),
        shown=tuple(rng.permutation(n).tolist()),
        asked=asked,
        filler=tuple((int(x), int(y)) for x, y in rng.integers(0, 5, (n, 2))),
    )


def _apply(op: str, x: int, y: int) -> int:
    match op:
        case "+":
            return (x + y) % 10
        case "-":
            return (x - y) % 10
        case "*":
            return x * y % 10
    raise ValueError(f"operator {op!r} is none of {OPERATORS}")


def _block(d: Definition, values: dict[str, int], needed: bool) -> str:
    """The block of one definition: substitute, compute, state whether the value is still needed, check it."""
    x, y = (values[t] if t in values else int(t) for t in (d.left, d.right))
    z = values[d.name]
    substituted = "" if (d.left, d.right) == (str(x), str(y)) else f" = {x} {d.op} {y}"
    check = {"+": f"{z} - {y} = {x}", "-": f"{z} + {y} = {x}", "*": f"{y} * {x} = {z}"}[d.op]
    verdict = "keep" if needed else "drop"
    return f"now {d}{substituted} = {z} . so {d.name} {z} {verdict} . check {check} ok ."
