"""Machines that programs can be compiled for without having them, and what they can do.

    v4:4x4x4 v5e:16x16 v5p:4x4x8 v6e:16x16          a slice of TPU chips
    a100-40g:8 a100-80g:8 h100:4x8 h200:2x8          GPUs of a node, or nodes x GPUs of each
    cpu:8                                            this machine's CPU in so many parts

Figures are one device's, dense and without sparsity, as the makers state them; docs/plans.md has
them in a table.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.experimental import topologies

from nova_jax.errors import NovaError
from nova_jax.kernels.device import Target

_GPU_PACKAGES = "jax-cuda13-plugin jax-cuda13-pjrt nvidia-cublas nvidia-cudnn-cu13"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """A kind of device.

    Attributes:
        name: for people.
        target: for kernels.
        memory: bytes that a program may use; of TPUs what libtpu's compiler allows.
        flops: FLOP/s of matrix products by type of the computation, at JAX's default precision:
            float32 runs as bfloat16 on TPUs and as TF32 on GPUs.
        bandwidth: of its memory, bytes/s.
        link: bytes/s in one direction of one ICI link, or of all of a GPU's NVLinks.
        network: bytes/s in one direction of a GPU's share of the network between nodes.
        wraps: the sizes of a TPU slice's side that close to a ring are multiples of this.
        on_chip: bytes that a kernel may use: VMEM of a TPU core, shared memory of a GPU's
            multiprocessor.
        processors: a GPU's multiprocessors.
        gpu: what XLA is told of a GPU.
        source: where the figures are from.
    """

    name: str
    target: Target
    memory: float = math.inf
    flops: Mapping[str, float] = dataclasses.field(default_factory=dict)
    bandwidth: float = math.inf
    link: float = math.inf
    network: float = math.inf
    wraps: int = 0
    on_chip: int = 0
    processors: int = 0
    gpu: str = ""
    source: str = ""


def _tpu(name: str, memory: float, vmem: int, flops: float, **options: Any) -> Machine:
    return Machine(
        name=f"TPU {name}",
        target=Target("tpu"),
        memory=memory * 2**30,
        flops={"bfloat16": flops, "float32": flops},
        on_chip=vmem * 2**20,
        source=f"https://cloud.google.com/tpu/docs/{name}",
        **options,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Generation:
    """What GPUs have in common that differ in their memory; `Machine` says the rest."""

    capability: int
    flops: tuple[float, float]
    link: float
    network: float
    processors: int
    units: int  # for float32, of a multiprocessor
    shared: int  # bytes of a multiprocessor
    cache: int
    clock: float  # GHz


_AMPERE = _Generation(
    capability=8,
    flops=(312e12, 156e12),
    link=300e9,
    network=25e9,
    processors=108,
    units=64,
    shared=167936,
    cache=41943040,
    clock=1.41,
)
_HOPPER = _Generation(
    capability=9,
    flops=(989.4e12, 494.7e12),
    link=450e9,
    network=50e9,
    processors=132,
    units=128,
    shared=233472,
    cache=52428800,
    clock=1.98,
)


def _gpu(chip: _Generation, name: str, kind: str, memory: int, bandwidth: float) -> Machine:
    on_chip = chip.shared - 1024  # CUDA keeps the rest
    told = f"""gpu_device_info {{
      threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
      shared_memory_per_block: 49152 shared_memory_per_core: {chip.shared}
      shared_memory_per_block_optin: {on_chip} core_count: {chip.processors}
      fpus_per_core: {chip.units}
      block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
      thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
      registers_per_core_limit: 65536 registers_per_block_limit: 65536
      memory_bandwidth: {bandwidth:.0f} l2_cache_size: {chip.cache} device_memory_size: {memory}
      clock_rate_ghz: {chip.clock} cuda_compute_capability {{ major: {chip.capability} }}
    }} platform_name: "CUDA" device_description_str: "{kind}" """
    return Machine(
        name=name,
        target=Target("gpu", float(chip.capability)),
        memory=memory - 2 * 2**30,  # CUDA, NCCL and cuDNN take some before JAX does
        flops=dict(zip(("bfloat16", "float32"), chip.flops, strict=True)),
        bandwidth=bandwidth,
        link=chip.link,
        network=chip.network,
        on_chip=on_chip,
        processors=chip.processors,
        gpu=told,
        source=f"https://www.nvidia.com/en-us/data-center/{name.split()[0].lower()}/",
    )


MACHINES: Mapping[str, Machine] = {
    "v4": _tpu("v4", 30.75, 16, 275e12, bandwidth=1200e9, link=45e9, wraps=4),
    "v5e": _tpu("v5e", 15.75, 128, 197e12, bandwidth=819e9, link=50e9, wraps=16),
    "v5p": _tpu("v5p", 95.73, 64, 459e12, bandwidth=2765e9, link=100e9, wraps=4),
    "v6e": _tpu("v6e", 31.24, 128, 918e12, bandwidth=1638e9, link=100e9, wraps=16),
    "a100-40g": _gpu(_AMPERE, "A100 40 GB", "NVIDIA A100-SXM4-40GB", 42298834944, 1555e9),
    "a100-80g": _gpu(_AMPERE, "A100 80 GB", "NVIDIA A100-SXM4-80GB", 85100068864, 2039e9),
    "h100": _gpu(_HOPPER, "H100", "NVIDIA H100 80GB HBM3", 84942979072, 3352e9),
    "h200": _gpu(_HOPPER, "H200", "NVIDIA H200", 150754820096, 4800e9),
    "cpu": Machine(name="CPU", target=Target("cpu"), source="this machine"),
}

# What JAX calls them: all of the words are in a device's kind.
_DEVICE_KINDS: Mapping[tuple[str, ...], str] = {
    ("TPU v4",): "v4",
    ("TPU v5 lite",): "v5e",
    ("TPU v5",): "v5p",
    ("TPU v6 lite",): "v6e",
    ("A100", "40GB"): "a100-40g",
    ("A100", "80GB"): "a100-80g",
    ("H100",): "h100",
    ("H200",): "h200",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
    """So many devices of a kind, and how they are joined.

    Attributes:
        machine: the kind, a key of `MACHINES`.
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


def machine_of(device: jax.Device) -> Machine | None:
    """What a device of this process can do; None for what is not in `MACHINES`, or a CPU."""
    kind = device.device_kind
    found = (name for words, name in _DEVICE_KINDS.items() if all(w in kind for w in words))
    name = next(found, None)
    return None if name is None else MACHINES[name]
