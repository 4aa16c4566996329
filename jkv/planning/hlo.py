"""What a compiled program does with its buffers, read off its text: XLA's HLO, after all of XLA's passes."""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(?:ENTRY )?%([\w.-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.-]+) = (\(.*?\)|\S+) ([a-z][\w-]*)\((.*)$")
_SHAPE = re.compile(r"\b([a-z][a-z0-9]*)\[([0-9,]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply)=%([\w.-]+)")
# Bytes of an element of each dtype.
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "s64": 8}
# Instructions whose result is a buffer that exists already, under another name; and those that write into one.
_RENAMES = {"parameter", "get-tuple-element", "tuple", "while", "conditional", "call", "bitcast", "opt-barrier"}
_IN_PLACE = {"dynamic-update-slice", "scatter"}
COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter", "collective-broadcast")


class Instruction(NamedTuple):
    """One instruction of a program.

    Attributes:
        name: its own, '%' left out.
        op: what it does: 'copy', 'fusion', 'all-reduce'.
        shapes: (dtype, sizes) of its result; of every part of it, if the result is a tuple.
        rest: the text after the opening parenthesis: operands and attributes.
        computation: the name of the computation (a function of the program) that it belongs to.
    """

    name: str
    op: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    rest: str
    computation: str


def instructions(text: str) -> Iterator[Instruction]:
    """Every instruction of every computation of a program, fused ones included."""
    here = ""
    for line in text.splitlines():
        if line and not line[0].isspace():
            found = _COMPUTATION.match(line)
            here = found[1] if found else here
        elif (found := _INSTRUCTION.match(line)) is not None:
            name, result, op, rest = found.groups()
            shapes = tuple((kind, _dims(dims)) for kind, dims in _SHAPE.findall(result))
            yield Instruction(name, op, shapes, rest, here)


def _dims(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(",")) if text else ()


def kv_copies(text: str, shape: tuple[int, ...]) -> list[str]:
    """The instructions that make a new array as large as a layer's key or value buffer on one device, or larger.

    Results of as many elements count, in any arrangement and dtype. Not counted are instructions that give an existing
    buffer another name (parameters, tuples, loops, bitcasts) or write into one: dynamic-update-slice, scatter, fusions
    that end in one of these, and kernels whose result is one of their operands.

    Args:
        text: the program's.
        shape: [B, K, S, H] of the buffer on one device.

    Returns:
        'op name' of each.
    """
    everything = list(instructions(text))
    # Instructions inside a fusion, or inside what a reduction applies, have no buffers of their own.
    inner = {called for i in everything if i.op != "call" for called in _CALLED.findall(i.rest)}
    roots = _roots(text)
    size = math.prod(shape)
    found = []
    for i in everything:
        big = any(math.prod(dims) >= size and _is_kv(dims, shape) for _, dims in i.shapes)
        if not big or i.computation in inner or i.op in _RENAMES or i.op in _IN_PLACE:
            continue
        called = _CALLED.search(i.rest)
        if i.op == "fusion" and called and roots.get(called[1], set()) <= _IN_PLACE:
            continue
        if i.op == "custom-call" and "output_to_operand_aliasing" in i.rest:
            continue
        found.append(f"{i.op} {i.name}")
    return found


def _is_kv(dims: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether an array with these sizes may be a buffer of this shape: it has as many elements, or axes S and H."""
    return math.prod(dims) == math.prod(shape) or (shape[2] in dims and shape[3] in dims)


def _roots(text: str) -> dict[str, set[str]]:
    """By computation, the ops that make its result: that of its root, or those of the parts if the root is a tuple.

    A bitcast is not taken for an op: what counts is the op of its operand.
    """
    by_name = {(i.computation, i.name): i for i in instructions(text)}
    found: dict[str, set[str]] = {}
    here = ""
    for line in text.splitlines():
        if line and not line[0].isspace():
            match = _COMPUTATION.match(line)
            here = match[1] if match else here
        elif line.lstrip().startswith("ROOT ") and (match := _INSTRUCTION.match(line)):
            found[here] = set(_ends(by_name, here, match[1]))
    return found


def _ends(by_name: dict[tuple[str, str], Instruction], computation: str, name: str) -> Iterator[str]:
    """The ops that make one instruction's result, with tuples and bitcasts replaced by their operands' ops."""
    i = by_name[computation, name]
    if i.op in ("tuple", "bitcast"):
        for operand in re.findall(r"%([\w.-]+)", i.rest):
            if (computation, operand) in by_name:
                yield from _ends(by_name, computation, operand)
    else:
        yield i.op


def collectives(text: str) -> dict[str, dict[str, int]]:
    """A program's collectives by kind: how many there are, and how many bytes the largest one's result has."""
    count: Counter[str] = Counter()
    largest: Counter[str] = Counter()
    for i in instructions(text):
        kind = i.op.removesuffix("-start")
        if kind in COLLECTIVES:
            count[kind] += 1
            size = max((_BYTES.get(dtype, 4) * math.prod(dims) for dtype, dims in i.shapes), default=0)
            largest[kind] = max(largest[kind], size)
    return {kind: {"count": count[kind], "largest_bytes": largest[kind]} for kind in sorted(count)}


def collective_shapes(text: str) -> list[tuple[str, str]]:
    """(kind, result) of every collective, sorted. A result is like 'bf16[32,1,4096]', a tuple a list of such parts."""
    found = []
    for i in instructions(text):
        kind = i.op.removesuffix("-start")
        if kind in COLLECTIVES:
            parts = (f"{dtype}[{','.join(map(str, dims))}]" for dtype, dims in i.shapes)
            found.append((kind, " ".join(parts)))
    return sorted(found)


def kernels(text: str) -> Counter[str]:
    """How often a program calls each Pallas TPU kernel, by the kernel's name."""
    found: Counter[str] = Counter()
    for i in instructions(text):
        if i.op == "custom-call" and 'custom_call_target="tpu_custom_call"' in i.rest:
            found[re.sub(r"[.\d]+$", "", i.name)] += 1
    return found


def aliased(text: str) -> int:
    """How many of a program's results are written into the buffer of one of its arguments."""
    head = text.split("\n", 1)[0]
    found = re.search(r"input_output_alias=\{(.*?)\}, entry", head)
    return found[1].count("alias)") if found else 0
