"""What a compiled program does on one device, read from its HLO text.

XLA's own cost analysis counts the body of a loop once, and the models loop over their depth. Here
every computation counts as often as it runs: the body of a loop by its trip count, of a conditional
the branch that does most.

- FLOPs are those of matrix products and convolutions, two a multiply-add, of cuDNN's and of splash
  attention (the latter as if it skipped nothing), and what Pallas kernels say of themselves.
- Bytes are what instructions read from and write to the device's memory. A fusion reads its inputs
  and writes its results; of what is sliced or updated in place only that part counts; what XLA
  keeps in a TPU's on-chip memory does not count. Padding of tiles is left out.
- Collectives are counted by kind, bytes and the devices that take part, as the program places them.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

_BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}
_SHAPE = re.compile(r"(\w+)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_PARENTHESIS = re.compile(r"[()]")
_NAME = re.compile(r"%([\w.\-]+)")
# Pallas's metadata breaks instructions over lines: these begin with what no other line begins with.
_BROKEN = re.compile(r'\n(?="|\}\})')
# Matrix products of the kernels of JAX's splash attention, forward and backward.
_SPLASH = {"fwd": 2, "dkv": 4, "dq": 3}

#: Collectives, by the name of their instruction.
COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# Instructions that touch no data.
_FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "conditional",
    "call",
    "after-all",
    "partition-id",
    "replica-id",
    "opt-barrier",
    "add-dependency",
    "domain",
}
_SLICES = {"dynamic-slice", "slice", "gather"}


@dataclasses.dataclass(frozen=True)
class Collective:
    """Equal collectives of a program.

    Attributes:
        kind: one of `COLLECTIVES`.
        bytes: what one of them handles on a device: the whole of what is gathered, reduced or
            exchanged.
        group: positions in the mesh, flattened, of the devices that share one; of a permutation a
            sender and its receiver.
    """

    kind: str
    bytes: int
    group: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Costs:
    """What one run of a program costs a device.

    Attributes:
        flops: of its matrix products.
        bytes: read from and written to the device's memory.
        collectives: how often each one runs.
    """

    flops: float
    bytes: float
    collectives: Mapping[Collective, float]

    def by_kind(self) -> dict[str, tuple[float, float]]:
        """(count, bytes) of the collectives of each kind."""
        totals: dict[str, tuple[float, float]] = {}
        for one, times in self.collectives.items():
            count, size = totals.get(one.kind, (0.0, 0.0))
            totals[one.kind] = (count + times, size + times * one.bytes)
        return totals


@dataclasses.dataclass(frozen=True)
class _Shape:
    """An array's type: `fast` if it lies in on-chip memory."""

    dims: tuple[int, ...]
    bytes: int
    fast: bool


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    shapes: tuple[_Shape, ...]
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    root: bool

    def attribute(self, name: str) -> str | None:
        """A computation that an attribute names."""
        match = re.search(rf"\b{name}=%([\w.\-]+)", self.attributes)
        return match and match[1]

    @property
    def size(self) -> int:
        """Bytes of the result in memory."""
        return sum(shape.bytes for shape in self.shapes if not shape.fast)


_Computation = dict[str, _Instruction]


def costs(text: str) -> Costs:
    """Reads an optimized HLO module, as ``compiled.as_text()`` gives it."""
    computations, entry = _parse(text)
    return _Reader(computations).run(entry)


def _parse(text: str) -> tuple[dict[str, _Computation], str]:
    computations: dict[str, _Computation] = {}
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
    return computations, entry


def _instruction(line: str) -> _Instruction:
    left, right = line.split(" = ", 1)
    end = _closing(right, 0) + 1 if right.startswith("(") else right.index(" ")
    kind, rest = right[:end], right[end:].lstrip()
    start = rest.index("(")
    stop = _closing(rest, start)
    shapes = tuple(
        _shape(*match.groups()) for match in _SHAPE.finditer(re.sub(r"/\*.*?\*/", "", kind))
    )
    return _Instruction(
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


def _shape(dtype: str, dims: str, layout: str | None) -> _Shape:
    sizes = tuple(int(size.lstrip("<=")) for size in dims.split(",") if size)
    digits = re.search(r"\d+", dtype)
    bits = _BITS.get(dtype, int(digits[0]) if digits else 0)
    return _Shape(sizes, math.prod(sizes) * bits // 8, "S(1)" in (layout or ""))


class _Reader:
    """Adds up what a program's computations do."""

    def __init__(self, computations: Mapping[str, _Computation]):
        self.computations = computations
        self.flops = self.bytes = 0.0
        self.collectives: dict[Collective, float] = defaultdict(float)

    def run(self, entry: str) -> Costs:
        self._visit(entry, 1.0)
        return Costs(self.flops, self.bytes, dict(self.collectives))

    def _visit(self, name: str, times: float) -> None:
        """Counts a computation whose intermediate results are in memory."""
        computation = self.computations[name]
        channels: set[str] = set()
        for one in computation.values():
            if one.opcode == "while":
                body = one.attribute("body")
                assert body is not None
                self._visit(body, times * self._trips(one, computation))
            elif one.opcode == "conditional":
                self._conditional(one, times)
            elif one.opcode == "call":
                self._visit(one.attribute("to_apply") or "", times)
            else:
                self._count(one, computation, times, channels)
                if one.opcode not in _FREE:
                    self.bytes += times * self._traffic(one, computation)

    def _count(
        self, one: _Instruction, computation: _Computation, times: float, channels: set[str]
    ) -> None:
        """Counts FLOPs and collectives of an instruction and of what is fused in it."""
        called = one.attribute("calls")
        if called is not None:
            inner = self.computations[called]
            for instruction in inner.values():
                self._count(instruction, inner, times, channels)
            return
        self.flops += times * _flops(one, computation)
        kind = one.opcode.removesuffix("-start")
        if kind not in COLLECTIVES:
            return
        channel = re.search(r"channel_id=(\d+)", one.attributes)
        # One collective whose stages are fused with several computations is there several times.
        if channel and "async_collective_fusion_config" in one.attributes:
            if channel[1] in channels:
                return
            channels.add(channel[1])
        self.collectives[_collective(kind, one, computation)] += times

    def _conditional(self, one: _Instruction, times: float) -> None:
        listed = re.search(r"branch_computations=\{([^}]*)\}", one.attributes)
        names = _NAME.findall(listed[1]) if listed else []
        names += [n for k in ("true", "false") if (n := one.attribute(f"{k}_computation"))]
        readers = []
        for name in names:
            reader = _Reader(self.computations)
            reader._visit(name, times)
            readers.append(reader)
        most = max(readers, key=lambda reader: (reader.flops, reader.bytes))
        self.flops += most.flops
        self.bytes += most.bytes
        for collective, count in most.collectives.items():
            self.collectives[collective] += count

    def _trips(self, loop: _Instruction, computation: _Computation) -> int:
        """How often a loop's body runs: as XLA notes, or from its condition, index < constant."""
        if known := re.search(r"known_trip_count\W+n\W+(\d+)", loop.attributes):
            return int(known[1])
        condition = self.computations[loop.attribute("condition") or ""]
        (root,) = (one for one in condition.values() if one.root)
        bounds = [
            int(found[1])
            for one in self._reached(condition, root)
            if one.opcode == "constant" and (found := re.match(r"(-?\d+)\)", one.attributes))
        ]
        if len(bounds) != 1:
            raise ValueError(f"the trip count of loop {loop.name} is not a constant")
        below = "direction=LE" in root.attributes
        return bounds[0] + below

    def _reached(self, computation: _Computation, one: _Instruction) -> Iterator[_Instruction]:
        """An instruction and all that it depends on, fusions opened."""
        yield one
        if called := one.attribute("calls"):
            yield from self.computations[called].values()
        for name in one.operands:
            yield from self._reached(computation, computation[name])

    def _traffic(self, one: _Instruction, computation: _Computation) -> int:
        """Bytes that an instruction moves to and from memory."""
        if one.opcode.endswith("-done") or one.opcode.endswith("-update"):
            return 0  # counted where it started
        operands = [computation[name] for name in one.operands]
        if one.opcode in _SLICES:
            return 2 * one.size
        if one.opcode == "dynamic-update-slice":
            return 2 * operands[1].size
        if one.opcode.endswith("-start"):
            # (from, to, ...), but a copy is (to, from, ...).
            to = one.shapes[0 if one.opcode == "copy-start" else len(one.shapes) // 2]
            return sum(operand.size for operand in operands) + (0 if to.fast else to.bytes)
        if called := one.attribute("calls"):
            return self._fusion_traffic(one, operands, self.computations[called])
        return one.size + sum(operand.size for operand in operands)

    def _fusion_traffic(
        self, one: _Instruction, operands: Sequence[_Instruction], inner: _Computation
    ) -> int:
        users: dict[str, list[_Instruction]] = defaultdict(list)
        for instruction in inner.values():
            for name in instruction.operands:
                users[name].append(instruction)
        total = 0
        for parameter in inner.values():
            if parameter.opcode != "parameter":
                continue
            index = int(parameter.attributes.split(")")[0])
            operand = operands[index]
            uses = _through_bitcasts(parameter, users)
            if all(use.opcode in _SLICES for use in uses):
                total += min(operand.size, sum(use.size for use in uses))
            elif not all(_is_target(use, inner, users, parameter) for use in uses):
                total += operand.size
        (root,) = (instruction for instruction in inner.values() if instruction.root)
        results = [inner[name] for name in root.operands] if root.opcode == "tuple" else [root]
        for result, shape in zip(results, one.shapes, strict=False):
            written = _before_bitcasts(result, inner)
            if written.opcode == "dynamic-update-slice":
                total += 2 * inner[written.operands[1]].shapes[0].bytes
            elif not shape.fast:
                total += shape.bytes
        return total


def _through_bitcasts(
    one: _Instruction, users: Mapping[str, Sequence[_Instruction]]
) -> list[_Instruction]:
    """What uses a value, itself or with another type or shape."""
    found = []
    for use in users.get(one.name, ()):
        found += _through_bitcasts(use, users) if use.opcode == "bitcast" else [use]
    return found


def _before_bitcasts(one: _Instruction, inner: _Computation) -> _Instruction:
    while one.opcode == "bitcast":
        one = inner[one.operands[0]]
    return one


def _is_target(
    use: _Instruction,
    inner: _Computation,
    users: Mapping[str, Sequence[_Instruction]],
    parameter: _Instruction,
) -> bool:
    """Whether a use only updates a part of the value, in place."""
    if use.opcode != "dynamic-update-slice":
        return False
    return _before_bitcasts(inner[use.operands[0]], inner) is parameter


def _flops(one: _Instruction, computation: _Computation) -> float:
    """FLOPs of a matrix product, in any of the forms that compilers give it."""
    shapes = [shape for name in one.operands for shape in computation[name].shapes]
    if one.opcode == "dot":
        contracted = _numbers(r"lhs_contracting_dims=\{([\d,]*)\}", one.attributes)
        return 2.0 * _elements(one) * math.prod(shapes[0].dims[d] for d in contracted)
    if one.opcode == "convolution":
        return _convolution(one, shapes[0], shapes[1])
    if one.opcode == "custom-call":
        target = re.search(r'custom_call_target="([^"]*)"', one.attributes)
        if target and ("gemm" in target[1] or "matmul" in target[1]):
            match = re.search(r'lhs_contracting_dimensions\W+((?:"?\d+"?,?)*)', one.attributes)
            contracted = [int(d) for d in re.findall(r"\d+", match[1])] if match else [-1]
            return (
                2.0
                * math.prod(one.shapes[0].dims)
                * math.prod(shapes[0].dims[d] for d in contracted)
            )
        if target and target[1].startswith("__cudnn$fmha"):
            return _attention("Backward" in target[1], shapes)
        if splash := re.search(r"splash_m[hq]a_(fwd|dkv|dq)", one.name + one.attributes):
            *heads, queries, channels = next(s.dims for s in shapes if len(s.dims) == 4)
            keys = [s.dims for s in shapes if len(s.dims) == 4][1][2]
            return _SPLASH[splash[1]] * 2.0 * math.prod(heads) * queries * keys * channels
        if said := re.search(r'"cost_estimate":\{"flops":"?(\d+)', one.attributes):
            return float(said[1])
    return 0.0


def _attention(backward: bool, shapes: Sequence[_Shape]) -> float:
    """cuDNN's attention on [B, S, K, H]: two products forward, five backward."""
    batch, queries, heads, channels = shapes[0].dims
    keys = shapes[1].dims[1]
    return (5 if backward else 2) * 2.0 * batch * heads * queries * keys * channels


def _convolution(one: _Instruction, lhs: _Shape, rhs: _Shape) -> float:
    """Two FLOPs for each pair of an output and a kernel element that meet in the input.

    TPUs have no other matrix product: batch dimensions of one become spatial ones of a convolution
    with padding and dilation, in which most pairs meet nothing.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.attributes)
    assert labels is not None
    left, right, out = labels.groups()
    window = re.search(r"window=\{([^}]*)\}", one.attributes)
    fields = dict(part.split("=") for part in window[1].split()) if window else {}
    spatial = sorted(set(out) - {"b", "f"})
    pairs = 1
    for index, axis in enumerate(spatial):
        value = lambda key, default, i=index: (  # noqa: E731
            fields[key].split("x")[i] if key in fields else default
        )
        low, _ = (int(side) for side in value("pad", "0_0").split("_"))
        stride, dilate = int(value("stride", 1)), int(value("lhs_dilate", 1))
        step = int(value("rhs_dilate", 1))
        size, kernel = lhs.dims[left.index(axis)], rhs.dims[right.index(axis)]
        result = one.shapes[0].dims[out.index(axis)]
        place = (
            np.arange(result, dtype=np.int64)[:, None] * stride
            + np.arange(kernel, dtype=np.int64)[None] * step
            - low
        )
        meets = (place % dilate == 0) & (place >= 0) & (place < (size - 1) * dilate + 1)
        pairs *= int(meets.sum())
    groups = re.search(r"batch_group_count=(\d+)", one.attributes)
    per_output = rhs.dims[right.index("i")] // (int(groups[1]) if groups else 1)
    dims = one.shapes[0].dims
    return 2.0 * dims[out.index("b")] * dims[out.index("f")] * per_output * pairs


def _elements(one: _Instruction) -> int:
    return math.prod(one.shapes[0].dims)


def _collective(kind: str, one: _Instruction, computation: _Computation) -> Collective:
    # What is gathered is the result, what is reduced or exchanged the operands.
    inputs = sum(shape.bytes for name in one.operands for shape in computation[name].shapes)
    group = _group(one.attributes)
    size = inputs * len(group) if kind == "all-gather" else inputs
    return Collective(kind, size, group)


def _group(attributes: str) -> tuple[int, ...]:
    """The first group of devices of a collective."""
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


def _numbers(pattern: str, text: str) -> list[int]:
    match = re.search(pattern, text)
    return _ints(match[1]) if match else []
