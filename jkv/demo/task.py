"""The demo task: small systems of arithmetic that take a long thought and a long memory.

A problem defines 2 to 6 variables modulo 10, shuffles the definitions and asks for up to three of them. The thought
works them out in alphabetical order, one block a variable, and ends in the asked values. What a block needs was
written dozens to hundreds of tokens earlier (a definition in the prompt, the ``so c 3 keep`` of another block), with
filler in between, so a decoder that evicts the wrong slots answers wrongly.

    <bos> b = a * 9 ; a = 8 + 9 ? b <think>
    now a = 8 + 9 = 7 . so a 7 keep . check 7 - 9 = 8 ok . (two filler sentences)
    now b = a * 9 = 7 * 9 = 3 . so b 3 keep . check 9 * 7 = 3 ok . (two filler sentences)
    </think> b 3 <eos>

Problems are pure functions of (stream, seed, index). Evaluation and training use different streams, so no choice of
seeds makes one draw the other's random numbers; small problems still coincide by chance (see README.md).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

NAMES = "abcdef"
DIGITS = "0123456789"
OPERATORS = "+-*"
MAX_ASKED = 3

# The first word of the random seed: two streams that no seed can make meet.
EVALUATION, TRAINING = 0, 1

# Two pools of sentences of eight words (the full stop is one). No word is a variable's name or a word of the work.
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
    """``name = left op right``; an operand is a digit or the name of an earlier variable."""

    name: str
    left: str
    op: str
    right: str

    def __str__(self) -> str:
        return f"{self.name} = {self.left} {self.op} {self.right}"


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem, its model solution and its grader.

    definitions: in alphabetical order of their names.  shown: the order in which the prompt lists them.
    asked: names, alphabetical.  filler: for each definition, which sentence of each pool follows its block.
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
        """What a user would say: the definitions and the asked names. The chat template turns it into ``prompt``."""
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
        """The asked values, as in 'd 0 e 0 f 1'."""
        values = self.values
        return " ".join(f"{name} {values[name]}" for name in self.asked)

    def solution(self, *, filler: bool = True) -> str:
        """The model completion of ``prompt``, from the first word of the thought to ``<eos>``."""
        return " ".join(text for text, _ in self.pieces(filler=filler))

    def pieces(self, *, filler: bool = True) -> list[tuple[str, bool]]:
        """``solution`` cut into (text, whether it is filler): training weighs the two differently."""
        values = self.values
        needed = {*self.asked, *(x for d in self.definitions for x in (d.left, d.right))}
        pieces = []
        for d, (first, second) in zip(self.definitions, self.filler, strict=True):
            pieces.append((_block(d, values, d.name in needed), False))
            if filler:
                pieces.append((f"{FILLER[0][first]} {FILLER[1][second]}", True))
        return [*pieces, (f"</think> {self.answer} <eos>", False)]

    def grade(self, text: str) -> bool:
        """Whether the text after the first ``</think>``, less a final ``<eos>``, is exactly the answer."""
        _, thought_ended, said = text.partition("</think>")
        return bool(thought_ended) and said.rstrip().removesuffix("<eos>").split() == self.answer.split()


def problems(n: int, seed: int = 0) -> list[Problem]:
    """The first ``n`` evaluation problems of ``seed``, with ids 'demo-00000', 'demo-00001', ...

    A problem depends on (seed, index) alone, so a longer list begins with the shorter one.
    """
    return [draw_problem(np.random.default_rng([EVALUATION, seed, i]), None, f"demo-{i:05d}") for i in range(n)]


def generate(
    seed: int, n: int, *, variables: Sequence[int | None] = (None,), crowded: float = 0.0, index: int = 0
) -> list[Problem]:
    """``n`` training problems: block ``index`` (a training step) of ``seed``.

    variables: how many variables each problem has, cycled over; None draws 2 to 6.
    crowded: how many of the problems, 0 to 1, use only two different digits. Their definitions look alike, so that
    a model which finds its place by operands and not by names is often wrong: it learns the difference sooner.
    """
    rng = np.random.default_rng([TRAINING, seed, index])
    return [draw_problem(rng, variables[i % len(variables)], f"train-{index}-{i}", crowded) for i in range(n)]


def draw_problem(rng: np.random.Generator, variables: int | None, id: str, crowded: float = 0.0) -> Problem:
    """One problem, of 2 to 6 ``variables`` if None. ``crowded``: as in ``generate``."""
    digits = DIGITS
    if crowded and rng.random() < crowded:
        digits = "".join(rng.choice(list(DIGITS), 2, replace=False).tolist())
    n = variables if variables is not None else int(rng.integers(2, len(NAMES) + 1))
    names = NAMES[:n]
    n_asked = int(rng.integers(1, min(MAX_ASKED, n) + 1))
    asked = tuple(sorted(rng.choice(list(names), n_asked, replace=False).tolist()))
    definitions = []
    for i, name in enumerate(names):
        # A reference goes to an asked variable where there is one: it must be remembered for the answer, and used
        # again before that.
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
    """The work on one definition: substitute, compute, say whether the value is still needed, check it."""
    x, y = (values[t] if t in values else int(t) for t in (d.left, d.right))
    z = values[d.name]
    substituted = "" if (d.left, d.right) == (str(x), str(y)) else f" = {x} {d.op} {y}"
    check = {"+": f"{z} - {y} = {x}", "-": f"{z} + {y} = {x}", "*": f"{y} * {x} = {z}"}[d.op]
    verdict = "keep" if needed else "drop"
    return f"now {d}{substituted} = {z} . so {d.name} {z} {verdict} . check {check} ok ."
