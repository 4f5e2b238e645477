"""Compiles the sampler's kernels for accelerators that are not here.

    python benchmarks/compile_kernels.py --targets=v4,v5e,v5p,v6e --tokens=16,528
    python benchmarks/compile_kernels.py --targets=a100,h100 --tokens=32

Real code generation: XLA and Mosaic for TPUs (needs libtpu), XLA and Triton for GPUs (needs
jax-cuda13-plugin and jax-cuda13-pjrt, no driver). What does not lower or does not fit fails here.
Nothing is run.
"""

import functools
import os
import time
from typing import Any

# Before jax is imported: libtpu must not look for a TPU machine.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import nnx
from heads import BATCH, HEADS, config_of_head
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nova_jax.kernels.diffusion_sampler import gpu, reference, tpu
from nova_jax.models.diffusion_head import DiffusionHead
from nova_jax.sampling.schedules import FlowMatchingSchedule

# VMEM of a core in MiB, and the smallest topology.
TPUS = {
    "v4": (16, "v4:2x2x1"),
    "v5e": (128, "v5e:2x2"),
    "v5p": (64, "v5p:2x2x1"),
    "v6e": (128, "v6e:2x2"),
}
# Name, compute capability, multiprocessors, FP32 units and shared memory of one, memory, its
# bandwidth, second-level cache, clock in GHz.
GPUS = {
    "a100": (
        "NVIDIA A100-SXM4-80GB",
        8,
        108,
        64,
        167936,
        85100068864,
        2039040000000,
        41943040,
        1.41,
    ),
    "h100": (
        "NVIDIA H100 80GB HBM3",
        9,
        132,
        128,
        233472,
        84942979072,
        3352320000000,
        52428800,
        1.98,
    ),
}
VALUES = 16  # of a token
TARGETS = flags.DEFINE_list("targets", list(TPUS), "Which: " + ", ".join([*TPUS, *GPUS]))
TOKENS = flags.DEFINE_list("tokens", ["32"], "Tokens of a set, padded.")
DTYPE = flags.DEFINE_enum(
    "dtype", "bfloat16", ["float32", "bfloat16", "float16"], "Type of weights and computation."
)
RENORM = flags.DEFINE_float("renorm", 1.0, "Lower bound of renormalization; 1: off.")


def gpu_description(name: str) -> str:
    """What XLA wants to know of a GPU."""
    kind, capability, cores, units, shared, memory, bandwidth, cache, clock = GPUS[name]
    return f"""gpu_device_info {{
      threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
      shared_memory_per_block: 49152 shared_memory_per_core: {shared}
      shared_memory_per_block_optin: {shared - 1024} core_count: {cores} fpus_per_core: {units}
      block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
      thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
      registers_per_core_limit: 65536 registers_per_block_limit: 65536
      memory_bandwidth: {bandwidth} l2_cache_size: {cache} device_memory_size: {memory}
      clock_rate_ghz: {clock} cuda_compute_capability {{ major: {capability} }}
    }} platform_name: "CUDA" device_description_str: "{kind}" """


def describe_tpu(name: str, head: DiffusionHead, tokens: int) -> tuple[Any, str]:
    """The kernel for a TPU, and how it uses VMEM."""
    vmem = TPUS[name][0]
    how = tpu.plan(
        rows=BATCH.value * tokens,
        passes=2,
        width=head.width,
        depth=head.depth,
        values=VALUES,
        dtype=DTYPE.value,
        noise=False,
        vmem=int(0.9 * vmem * 2**20),
        divisible=RENORM.value == 1,
    )
    kept = "resident" if how.resident else f"streamed, {how.buffers} buffers"
    words = (
        f"{how.groups} groups, tiles of {how.tile}, weights {kept}, {how.bytes / 2**20:.0f} of "
        f"{vmem} MiB VMEM"
    )
    return functools.partial(tpu.sample, vmem=vmem * 2**20), words


def describe_gpu(name: str, head: DiffusionHead, tokens: int) -> tuple[Any, str]:
    """The kernel for a GPU, and how it is spread."""
    processors, shared = GPUS[name][2], GPUS[name][4] - 1024
    columns = gpu.plan(
        tokens=tokens,
        batch=BATCH.value,
        width=head.width,
        dtype=DTYPE.value,
        processors=processors,
        shared=shared,
    )
    programs = BATCH.value * head.width // columns
    words = f"{programs} programs of {columns} columns on {processors} multiprocessors"
    return functools.partial(gpu.sample, processors=processors, shared=shared), words


def compile_for(name: str, head_size: str, tokens: int) -> str:
    """Compiles the kernel for one device; says how long it took."""
    options = {"platform": "tpu", "topology_name": TPUS[name][1]} if name in TPUS else {}
    if name in GPUS:
        options = {"platform": "cuda", "topology_name": "1x1x1"}
        options |= {"topology": "1x1x1", "target_config": gpu_description(name)}
    devices = topologies.get_topology_desc(**options).devices
    mesh = Mesh(np.array(devices[:1]), ("d",))
    config = config_of_head(head_size)
    head = nnx.eval_shape(lambda: DiffusionHead(config, dtype=DTYPE.value, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(head)
    steps, guidance = FlowMatchingSchedule().sampling_steps(25), reference.Guidance(2, RENORM.value)
    describe = describe_tpu if name in TPUS else describe_gpu
    kernel, words = describe(name, head, tokens)
    batch = BATCH.value

    def run(state, features, x, gram):
        head = nnx.merge(graph, state)
        outside = None
        if guidance.renormalized:
            outside = reference.Outside(jnp.ones((batch, 1)), gram)
        modulations = reference.modulate(head, features, jnp.asarray(steps.time))
        arguments = (head, modulations, (x, outside), steps, guidance, 5.0, jnp.ones(tokens))
        return kernel(reference.Work(*arguments))[0]

    def abstract(shape, dtype):
        sharding = NamedSharding(mesh, PartitionSpec())
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    state = jax.tree.map(lambda leaf: abstract(leaf.shape, DTYPE.value), state)
    features = abstract((2 * batch, tokens, head.width), DTYPE.value)
    x = abstract((batch, tokens, VALUES), jnp.float32)
    gram = abstract((batch, 1, 1), jnp.float32)
    began = time.perf_counter()
    # Triton's lowering asks for the kind of device.
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        lowered = jax.jit(run).lower(state, features, x, gram)
    compiled = lowered.compile()
    temporaries = compiled.memory_analysis().temp_size_in_bytes / 2**20
    seconds = time.perf_counter() - began
    return f"{seconds:.1f} s, {words}, {temporaries:.0f} MiB of temporaries"


def main(_: list[str]) -> None:
    """Compiles everything that is asked for."""
    for name in TARGETS.value:
        for head in HEADS.value:
            for tokens in map(int, TOKENS.value):
                print(f"{name:4} {head:12} {tokens:5} tokens: ", end="", flush=True)
                print(compile_for(name, head, tokens), flush=True)


if __name__ == "__main__":
    app.run(main)
