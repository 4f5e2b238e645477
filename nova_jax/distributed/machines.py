"""The machines that programs run on or are compiled for, and what one device of them can do.

Figures are one device's, dense and without sparsity, as the makers state them; docs/plans.md has
them in a table.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax

from nova_jax.kernels.device import Target


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


def _gpu(
    name: str,
    kind: str,
    memory: int,
    bandwidth: float,
    *,
    capability: int,
    flops: tuple[float, float],
    units: int,  # for float32, of a multiprocessor
    shared: int,  # bytes of a multiprocessor
    cache: int,
    clock: float,  # GHz
    processors: int,
    **options: Any,
) -> Machine:
    on_chip = shared - 1024  # CUDA keeps the rest
    told = f"""gpu_device_info {{
      threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
      shared_memory_per_block: 49152 shared_memory_per_core: {shared}
      shared_memory_per_block_optin: {on_chip} core_count: {processors}
      fpus_per_core: {units}
      block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
      thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
      registers_per_core_limit: 65536 registers_per_block_limit: 65536
      memory_bandwidth: {bandwidth:.0f} l2_cache_size: {cache} device_memory_size: {memory}
      clock_rate_ghz: {clock} cuda_compute_capability {{ major: {capability} }}
    }} platform_name: "CUDA" device_description_str: "{kind}" """
    return Machine(
        name=name,
        target=Target("gpu", float(capability)),
        memory=memory - 2 * 2**30,  # CUDA, NCCL and cuDNN take some before JAX does
        flops=dict(zip(("bfloat16", "float32"), flops, strict=True)),
        bandwidth=bandwidth,
        on_chip=on_chip,
        processors=processors,
        gpu=told,
        source=f"https://www.nvidia.com/en-us/data-center/{name.split()[0].lower()}/",
        **options,
    )


_ampere = partial(
    _gpu,
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

_hopper = partial(
    _gpu,
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

MACHINES: Mapping[str, Machine] = {
    "v4": _tpu("v4", 30.75, 16, 275e12, bandwidth=1200e9, link=45e9, wraps=4),
    "v5e": _tpu("v5e", 15.75, 128, 197e12, bandwidth=819e9, link=50e9, wraps=16),
    "v5p": _tpu("v5p", 95.73, 64, 459e12, bandwidth=2765e9, link=100e9, wraps=4),
    "v6e": _tpu("v6e", 31.24, 128, 918e12, bandwidth=1638e9, link=100e9, wraps=16),
    "a100-40g": _ampere("A100 40 GB", "NVIDIA A100-SXM4-40GB", 42298834944, 1555e9),
    "a100-80g": _ampere("A100 80 GB", "NVIDIA A100-SXM4-80GB", 85100068864, 2039e9),
    "h100": _hopper("H100", "NVIDIA H100 80GB HBM3", 84942979072, 3352e9),
    "h200": _hopper("H200", "NVIDIA H200", 150754820096, 4800e9),
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


def machine_of(device: jax.Device) -> Machine | None:
    """What a device of this process can do; None for what is not in `MACHINES`, or a CPU."""
    kind = device.device_kind
    found = (name for words, name in _DEVICE_KINDS.items() if all(w in kind for w in words))
    name = next(found, None)
    return None if name is None else MACHINES[name]
