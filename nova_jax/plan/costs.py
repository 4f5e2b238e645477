"""What a compiled program does on one device, counted from its instructions.

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

import numpy as np

from nova_jax.plan.hlo import Computation, Instruction, Module, Shape, first_group

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
_FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast while conditional call after-all "
    "partition-id replica-id opt-barrier add-dependency domain".split()
)
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


def read_costs(text: str) -> Costs:
    """The costs of an optimized HLO module, as ``compiled.as_text()`` gives it."""
    module = Module.parse(text)
    counter = _Counter(module.computations)
    counter.visit(module.entry, 1.0)
    return Costs(counter.flops, counter.bytes, dict(counter.collectives))


class _Counter:
    """Adds up what a program's computations do."""

    def __init__(self, computations: Mapping[str, Computation]):
        self.computations = computations
        self.flops = self.bytes = 0.0
        self.collectives: dict[Collective, float] = defaultdict(float)

    def visit(self, name: str, times: float) -> None:
        """Counts a computation whose intermediate results are in memory."""
        computation = self.computations[name]
        channels: set[str] = set()
        for one in computation.values():
            if one.opcode == "while":
                body = one.called("body")
                assert body is not None
                self.visit(body, times * self._trips(one, computation))
            elif one.opcode == "conditional":
                self._conditional(one, times)
            elif one.opcode == "call":
                self.visit(one.called("to_apply") or "", times)
            else:
                self._count(one, computation, times, channels)
                if one.opcode not in _FREE:
                    self.bytes += times * self._traffic(one, computation)

    def _count(
        self, one: Instruction, computation: Computation, times: float, channels: set[str]
    ) -> None:
        """Counts FLOPs and collectives of an instruction and of what is fused in it."""
        called = one.called("calls")
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

    def _conditional(self, one: Instruction, times: float) -> None:
        """Counts the branch that does most."""
        counters = []
        for name in one.branches():
            counter = _Counter(self.computations)
            counter.visit(name, times)
            counters.append(counter)
        most = max(counters, key=lambda counter: (counter.flops, counter.bytes))
        self.flops += most.flops
        self.bytes += most.bytes
        for collective, count in most.collectives.items():
            self.collectives[collective] += count

    def _trips(self, loop: Instruction, computation: Computation) -> int:
        """How often a loop's body runs: as XLA notes, or from its condition, index < constant."""
        if known := re.search(r"known_trip_count\W+n\W+(\d+)", loop.attributes):
            return int(known[1])
        condition = self.computations[loop.called("condition") or ""]
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

    def _reached(self, computation: Computation, one: Instruction) -> Iterator[Instruction]:
        """An instruction and all that it depends on, fusions opened."""
        yield one
        if called := one.called("calls"):
            yield from self.computations[called].values()
        for name in one.operands:
            yield from self._reached(computation, computation[name])

    def _traffic(self, one: Instruction, computation: Computation) -> int:
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
        if called := one.called("calls"):
            return self._fusion_traffic(one, operands, self.computations[called])
        return one.size + sum(operand.size for operand in operands)

    def _fusion_traffic(
        self, one: Instruction, operands: Sequence[Instruction], inner: Computation
    ) -> int:
        """Bytes that a fusion reads of each operand, and writes of each result."""
        users: dict[str, list[Instruction]] = defaultdict(list)
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
    one: Instruction, users: Mapping[str, Sequence[Instruction]]
) -> list[Instruction]:
    """What uses a value, itself or with another type or shape."""
    found = []
    for use in users.get(one.name, ()):
        found += _through_bitcasts(use, users) if use.opcode == "bitcast" else [use]
    return found


def _before_bitcasts(one: Instruction, inner: Computation) -> Instruction:
    while one.opcode == "bitcast":
        one = inner[one.operands[0]]
    return one


def _is_target(
    use: Instruction,
    inner: Computation,
    users: Mapping[str, Sequence[Instruction]],
    parameter: Instruction,
) -> bool:
    """Whether a use only updates a part of the value, in place."""
    if use.opcode != "dynamic-update-slice":
        return False
    return _before_bitcasts(inner[use.operands[0]], inner) is parameter


def _flops(one: Instruction, computation: Computation) -> float:
    """FLOPs of a matrix product, in any of the forms that compilers give it."""
    shapes = [shape for name in one.operands for shape in computation[name].shapes]
    if one.opcode == "dot":
        return _product(one, shapes[0], one.numbers("lhs_contracting_dims"))
    if one.opcode == "convolution":
        return _convolution(one, shapes[0], shapes[1])
    if one.opcode == "custom-call":
        target = re.search(r'custom_call_target="([^"]*)"', one.attributes)
        if target and ("gemm" in target[1] or "matmul" in target[1]):
            match = re.search(r'lhs_contracting_dimensions\W+((?:"?\d+"?,?)*)', one.attributes)
            contracted = [int(d) for d in re.findall(r"\d+", match[1])] if match else [-1]
            return _product(one, shapes[0], contracted)
        if target and target[1].startswith("__cudnn$fmha"):
            return _attention("Backward" in target[1], shapes)
        if splash := re.search(r"splash_m[hq]a_(fwd|dkv|dq)", one.name + one.attributes):
            *heads, queries, channels = next(s.dims for s in shapes if len(s.dims) == 4)
            keys = [s.dims for s in shapes if len(s.dims) == 4][1][2]
            return _SPLASH[splash[1]] * 2.0 * math.prod(heads) * queries * keys * channels
        if said := re.search(r'"cost_estimate":\{"flops":"?(\d+)', one.attributes):
            return float(said[1])
    return 0.0


def _product(one: Instruction, lhs: Shape, contracted: Sequence[int]) -> float:
    """A matrix product that sums over these dimensions of its first operand."""
    return 2.0 * math.prod(one.shapes[0].dims) * math.prod(lhs.dims[d] for d in contracted)


def _attention(backward: bool, shapes: Sequence[Shape]) -> float:
    """cuDNN's attention on [B, S, K, H]: two products forward, five backward."""
    batch, queries, heads, channels = shapes[0].dims
    keys = shapes[1].dims[1]
    return (5 if backward else 2) * 2.0 * batch * heads * queries * keys * channels


def _convolution(one: Instruction, lhs: Shape, rhs: Shape) -> float:
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


def _collective(kind: str, one: Instruction, computation: Computation) -> Collective:
    # What is gathered is the result, what is reduced or exchanged the operands.
    inputs = sum(shape.bytes for name in one.operands for shape in computation[name].shapes)
    group = first_group(one.attributes)
    size = inputs * len(group) if kind == "all-gather" else inputs
    return Collective(kind, size, group)
