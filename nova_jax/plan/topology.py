"""Machines that programs can be compiled for without having them, and what they can do.

v4:4x4x4 v5e:16x16 v5p:4x4x8 v6e:16x16          a slice of TPU chips
a100-40g:8 a100-80g:8 h100:4x8 h200:2x8          GPUs of a node, or nodes x GPUs of each
cpu:8                                            this machine's CPU in so many parts
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from nova_jax.distributed.machines import MACHINES, Machine
from nova_jax.errors import NovaError

# Devices that a plan may have. Every CPU device has threads of its own; of others there are as many
# as in the largest slice that is built, a v5p's.
_MOST = {"cpu": 1024, "others": 8960}
_GPU_PACKAGES = "jax-cuda13-plugin jax-cuda13-pjrt nvidia-cublas nvidia-cudnn-cu13"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
    """So many devices of a kind, and how they are joined.

    Attributes:
        kind: of the devices, a key of `MACHINES`.
        shape: sides of a TPU slice; (nodes, GPUs of each); CPU devices.
    """

    kind: str
    shape: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> Topology:
        """Reads KIND:SHAPE, such as v5e:16x16.

        Raises:
            NovaError: it is not known, or has another form.
        """
        kind, _, shape = text.lower().partition(":")
        if kind not in MACHINES:
            raise NovaError(
                f"topology {text!r} is not known; KIND:SHAPE, KIND one of {', '.join(MACHINES)}"
            )
        if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape):
            raise NovaError(f"topology {text!r} lacks a shape; write it like {_EXAMPLES[kind]}")
        sides = tuple(map(int, shape.split("x")))
        platform = MACHINES[kind].target.platform
        if platform == "gpu" and len(sides) == 1:
            sides = (1, *sides)
        dimensions = {"cpu": 1, "gpu": 2}.get(platform, 3 if kind in ("v4", "v5p") else 2)
        if len(sides) != dimensions:
            raise NovaError(
                f"topology {text!r} has the wrong shape; write it like {_EXAMPLES[kind]}"
            )
        most = _MOST["cpu" if platform == "cpu" else "others"]
        if math.prod(sides) > most:
            raise NovaError(
                f"topology {text!r} has {math.prod(sides):,} devices; plans are made for {most:,} "
                "at most"
            )
        return cls(kind=kind, shape=sides)

    @property
    def machine(self) -> Machine:
        """What one of the devices can do."""
        return MACHINES[self.kind]

    @property
    def size(self) -> int:
        """How many devices there are."""
        return math.prod(self.shape)

    def __str__(self) -> str:
        return f"{self.kind}:{'x'.join(map(str, self.shape))}"

    def devices(self) -> Sequence[Any]:
        """The devices, for compilation alone.

        Raises:
            NovaError: this machine lacks what compiles for them, or there is no such topology.
        """
        platform = self.machine.target.platform
        if platform == "cpu":
            return _cpus(self.size)
        shape = "x".join(map(str, self.shape))
        options: dict[str, Any] = {"platform": "tpu", "topology_name": str(self)}
        if platform == "gpu":
            options = {"platform": "cuda", "topology_name": shape, "topology": f"1x{shape}"}
            options["target_config"] = self.machine.gpu
        else:
            _let_libtpu_load()
        if self.kind == "v4":
            options["chip_config_name"] = "megacore"  # a chip's two cores are one device
        _need(platform)
        try:
            return topologies.get_topology_desc(**options).devices
        except (RuntimeError, ValueError) as error:  # jax.errors.JaxRuntimeError is the former
            reason = str(error).splitlines()[0]
            raise NovaError(f"topology {self} cannot be compiled for: {reason}") from error

    def seconds(self, kind: str, size: float, group: Sequence[Any]) -> float:
        """How long a collective of `size` bytes takes in each group of devices like this one."""
        devices = len(group)
        return sent_bytes(kind, size, devices) / self.bandwidth(group) if devices > 1 else 0.0

    def bandwidth(self, group: Sequence[Any]) -> float:
        """Bytes/s at which each device of a group can send to the others, all groups at once.

        A TPU slice: the links of every side of the slice that the group extends along, in both
        directions where the side closes to a ring that the group fills; groups that lie between
        each other share links. GPUs: NVLink inside a node; across nodes the network of all GPUs of
        the group in a node together.
        """
        machine = self.machine
        if machine.target.platform == "cpu":
            return math.inf
        if machine.target.platform == "gpu":
            nodes = [device.process_index for device in group]
            if len(set(nodes)) == 1:
                return machine.link
            return min(machine.link, machine.network * nodes.count(nodes[0]))
        total = 0.0
        for side, *places in zip(self.shape, *(device.coords for device in group), strict=False):
            distinct = sorted(set(places))
            if len(distinct) == 1:
                continue
            gap = min(b - a for a, b in zip(distinct, distinct[1:], strict=False))
            ring = side % machine.wraps == 0 and len(distinct) * gap == side
            total += machine.link * (2 if ring else 1) / gap
        return total


def sent_bytes(kind: str, size: float, devices: int) -> float:
    """Bytes that each device of a ring sends in a collective of `size` bytes.

    (n − 1)/n of them in an all-gather, a reduce-scatter or an all-to-all, twice that in an
    all-reduce, all of them in a permutation.
    """
    if kind == "collective-permute":
        return size
    return (2 if kind == "all-reduce" else 1) * size * (devices - 1) / devices


_EXAMPLES = {
    "v4": "v4:4x4x4",
    "v5e": "v5e:16x16",
    "v5p": "v5p:4x4x8",
    "v6e": "v6e:16x16",
    "a100-40g": "a100-40g:8 or a100-40g:4x8",
    "a100-80g": "a100-80g:8 or a100-80g:4x8",
    "h100": "h100:8 or h100:4x8",
    "h200": "h200:8 or h200:4x8",
    "cpu": "cpu:8",
}


def _cpus(count: int) -> Sequence[jax.Device]:
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # there are devices already
        pass
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise NovaError(f"this process has {len(devices)} CPU devices, not {count}; start another")
    return devices[:count]


def _need(platform: str) -> None:
    """Raises if what compiles for a platform is not installed."""
    modules, packages = {
        "tpu": (("libtpu",), "libtpu"),
        "gpu": (("jax_plugins.xla_cuda13", "nvidia.cudnn"), _GPU_PACKAGES),
    }[platform]
    for module in modules:
        try:
            found = importlib.util.find_spec(module)
        except ModuleNotFoundError:  # not even the package that it is in
            found = None
        if found is None:
            python = " (Python 3.12 or newer)" if platform == "gpu" else ""
            raise NovaError(
                f"compiling for {platform.upper()}s needs {module}: python -m pip install "
                f"{packages}{python}"
            )


def _let_libtpu_load() -> None:
    """Has libtpu compile only: not look for a TPU machine, nor keep others from loading it."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    # JAX has written what it did not find on the Internet into these.
    for name, value in (("WORKER_HOSTNAMES", "localhost"), ("ACCELERATOR_TYPE", "v5litepod-8")):
        if os.environ.get(f"TPU_{name}", "WARNING").startswith("WARNING"):
            os.environ[f"TPU_{name}"] = value
