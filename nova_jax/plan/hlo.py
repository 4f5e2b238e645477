"""The text of a compiled program (optimized HLO), read into instructions.

`nova_jax.plan.costs` counts what they cost.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

_BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}
_SHAPE = re.compile(r"(\w+)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_PARENTHESIS = re.compile(r"[()]")
_NAME = re.compile(r"%([\w.\-]+)")
# Pallas's metadata breaks instructions over lines: these begin with what no other line begins with.
_BROKEN = re.compile(r'\n(?="|\}\})')


@dataclasses.dataclass(frozen=True)
class Shape:
    """The type of an array.

    Attributes:
        dims: its sizes.
        bytes: of all of it.
        fast: whether it lies in on-chip memory.
    """

    dims: tuple[int, ...]
    bytes: int
    fast: bool


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a program.

    Attributes:
        name: by which others in its computation name it.
        shapes: of its results.
        opcode: what it does.
        operands: names of the instructions whose results it takes.
        attributes: the rest of the line.
        root: whether its result is the computation's.
    """

    name: str
    shapes: tuple[Shape, ...]
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    root: bool

    @property
    def size(self) -> int:
        """Bytes of the result in memory."""
        return sum(shape.bytes for shape in self.shapes if not shape.fast)

    def called(self, attribute: str) -> str | None:
        """The computation that an attribute names."""
        match = re.search(rf"\b{attribute}=%([\w.\-]+)", self.attributes)
        return match and match[1]

    def branches(self) -> list[str]:
        """The computations of a conditional."""
        listed = re.search(r"branch_computations=\{([^}]*)\}", self.attributes)
        names = _NAME.findall(listed[1]) if listed else []
        pair = (self.called("true_computation"), self.called("false_computation"))
        return names + [name for name in pair if name is not None]

    def numbers(self, attribute: str) -> list[int]:
        """The numbers of an attribute like ``lhs_contracting_dims={1,2}``."""
        match = re.search(rf"{attribute}=\{{([\d,]*)\}}", self.attributes)
        return _ints(match[1]) if match else []


#: Instructions by name.
Computation = Mapping[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Module:
    """A program: its computations by name, and the one that it begins with."""

    computations: Mapping[str, Computation]
    entry: str

    @classmethod
    def parse(cls, text: str) -> Module:
        """Reads a module, as ``compiled.as_text()`` gives it."""
        computations: dict[str, dict[str, Instruction]] = {}
        entry, current = "", None
        for line in _BROKEN.sub(" ", text).splitlines():
            if line.endswith("{") and not line.startswith((" ", "HloModule")):
                words = line.split()
                name = words[words[0] == "ENTRY"].lstrip("%")
                entry = name if words[0] == "ENTRY" else entry
                current = computations.setdefault(name, {})
            elif current is not None and " = " in line and line.startswith(" "):
                instruction = _instruction(line)
                current[instruction.name] = instruction
        return cls(computations, entry)


def _instruction(line: str) -> Instruction:
    left, right = line.split(" = ", 1)
    end = _closing(right, 0) + 1 if right.startswith("(") else right.index(" ")
    kind, rest = right[:end], right[end:].lstrip()
    start = rest.index("(")
    stop = _closing(rest, start)
    shapes = tuple(
        _shape(*match.groups()) for match in _SHAPE.finditer(re.sub(r"/\*.*?\*/", "", kind))
    )
    return Instruction(
        name=left.split()[-1].lstrip("%"),
        shapes=shapes,
        opcode=rest[:start],
        operands=tuple(_NAME.findall(rest[start:stop])),
        # A constant's or a parameter's argument stands where others have operands.
        attributes=rest[start + 1 :] if not rest[start + 1 : stop].startswith("%") else rest[stop:],
        root=left.lstrip().startswith("ROOT"),
    )


def _closing(text: str, start: int) -> int:
    depth = 0
    for match in _PARENTHESIS.finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"no closing parenthesis in {text[:80]!r}")


def _shape(dtype: str, dims: str, layout: str | None) -> Shape:
    sizes = tuple(int(size.lstrip("<=")) for size in dims.split(",") if size)
    digits = re.search(r"\d+", dtype)
    bits = _BITS.get(dtype, int(digits[0]) if digits else 0)
    return Shape(sizes, math.prod(sizes) * bits // 8, "S(1)" in (layout or ""))


def first_group(attributes: str) -> tuple[int, ...]:
    """The first group of devices of a collective; of a permutation a sender and its receiver.

    Raises:
        ValueError: it is in a form that is not known.
    """
    if pairs := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", attributes):
        return int(pairs[1]), int(pairs[2])
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return tuple(int(device) for device in listed[1].split(","))
    if iota := re.search(
        r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes
    ):
        return tuple(_iota(iota[2], iota[3]).reshape(_ints(iota[1]))[0].tolist())
    found = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^{]*)\))? \{([^}]*)\}", attributes
    )
    if found is None:
        raise ValueError(f"replica groups in an unknown form: {attributes[:200]}")
    axes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", found[1])}
    if order := re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", found[2] or ""):
        devices = _iota(order[1], order[2])
    else:
        devices = np.array(_ints(found[2] or "") or range(math.prod(axes.values())))
    # An axis may be split: 'axis':(inner product before)size.
    shape, chosen = [], []
    picked = re.findall(r"'([^']*)'(?::\((\d+)\)(\d+))?", found[3])
    for name, size in axes.items():
        parts = sorted((int(a), int(b)) for n, a, b in picked if n == name and a)
        whole = any(n == name and not a for n, a, _ in picked)
        before = 1
        for start, length in parts:
            if start > before:
                shape.append(start // before)
                chosen.append(False)
            shape.append(length)
            chosen.append(True)
            before = start * length
        if size > before or whole:
            shape.append(size // before)
            chosen.append(whole)
    grid = devices.reshape(shape)
    index: tuple[Any, ...] = tuple(slice(None) if pick else 0 for pick in chosen)
    return tuple(np.ravel(grid[index]).tolist())


def _iota(dims: str, order: str | None) -> np.ndarray:
    sizes = _ints(dims)
    grid = np.arange(math.prod(sizes)).reshape(sizes)
    return (grid.transpose(_ints(order)) if order else grid).ravel()


def _ints(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]
