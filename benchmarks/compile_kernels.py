"""Compiles the sampler's kernels for accelerators that are not here.

    python benchmarks/compile_kernels.py --targets=v4,v5e,v5p,v6e --tokens=16,528
    python benchmarks/compile_kernels.py --targets=a100-80g,h100 --tokens=32

Real code generation: XLA and Mosaic for TPUs (needs libtpu), XLA and Triton for GPUs (needs
jax-cuda13-plugin and jax-cuda13-pjrt, no driver). What does not lower or does not fit fails here.
Nothing is run.
"""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import nnx
from heads import BATCH, HEADS, make_head
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nova_jax.distributed.machines import Machine
from nova_jax.kernels.device import target
from nova_jax.kernels.diffusion_sampler import gpu, reference, tpu
from nova_jax.models.diffusion_head import DiffusionHead
from nova_jax.plan.topology import Topology
from nova_jax.sampling.schedules import FlowMatchingSchedule

# The smallest topology of each kind of device.
SMALLEST = {
    "v4": "v4:2x2x1",
    "v5e": "v5e:2x2",
    "v5p": "v5p:2x2x1",
    "v6e": "v6e:2x2",
    "a100-80g": "a100-80g:1",
    "h100": "h100:1",
}
VALUES = 16  # of a token
TARGETS = flags.DEFINE_list("targets", [*SMALLEST][:4], "Which: " + ", ".join(SMALLEST))
TOKENS = flags.DEFINE_list("tokens", ["32"], "Tokens of a set, padded.")
DTYPE = flags.DEFINE_enum(
    "dtype", "bfloat16", ["float32", "bfloat16", "float16"], "Type of weights and computation."
)
RENORM = flags.DEFINE_float("renorm", 1.0, "Lower bound of renormalization; 1: off.")


def describe_tpu(machine: Machine, head: DiffusionHead, tokens: int) -> tuple[Any, str]:
    """The kernel for a TPU, and how it uses VMEM."""
    how = tpu.choose_tiling(
        rows=BATCH.value * tokens,
        passes=2,
        width=head.width,
        depth=head.depth,
        values=VALUES,
        dtype=DTYPE.value,
        noise=False,
        vmem=int(0.9 * machine.on_chip),
        divisible=RENORM.value == 1,
    )
    kept = "resident" if how.resident else f"streamed, {how.buffers} buffers"
    words = (
        f"{how.groups} groups, tiles of {how.tile}, weights {kept}, {how.bytes / 2**20:.0f} of "
        f"{machine.on_chip / 2**20:.0f} MiB VMEM"
    )
    return functools.partial(tpu.sample, vmem=machine.on_chip), words


def describe_gpu(machine: Machine, head: DiffusionHead, tokens: int) -> tuple[Any, str]:
    """The kernel for a GPU, and how it is spread."""
    processors, shared = machine.processors, machine.on_chip
    columns = gpu.choose_columns(
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
    topology = Topology.parse(SMALLEST[name])
    machine = topology.machine
    mesh = Mesh(np.array(topology.devices()[:1]), ("d",))
    head = nnx.eval_shape(lambda: make_head(head_size, DTYPE.value))
    graph, state = nnx.split(head)
    steps, guidance = FlowMatchingSchedule().sampling_steps(25), reference.Guidance(2, RENORM.value)
    describe = describe_tpu if machine.target.platform == "tpu" else describe_gpu
    kernel, words = describe(machine, head, tokens)
    batch = BATCH.value

    def run(state, features, x, gram):
        head = nnx.merge(graph, state)
        outside = None
        if guidance.renormalized:
            outside = reference.Outside(jnp.ones((batch, 1)), gram)
        modulations = head.modulations(features, jnp.asarray(steps.time))
        weights, valid = head.weights(), jnp.ones(tokens)
        arguments = (weights, modulations, (x, outside), steps, guidance, 5.0, valid)
        return kernel(reference.Work(*arguments))[0]

    def abstract(shape, dtype):
        sharding = NamedSharding(mesh, PartitionSpec())
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    state = jax.tree.map(lambda leaf: abstract(leaf.shape, leaf.dtype), state)
    features = abstract((2 * batch, tokens, head.width), DTYPE.value)
    x = abstract((batch, tokens, VALUES), jnp.float32)
    gram = abstract((batch, 1, 1), jnp.float32)
    began = time.perf_counter()
    # Triton's lowering asks for the kind of device.
    with target(machine.target), jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        lowered = jax.jit(run).lower(state, features, x, gram)
    compiled = lowered.compile()
    temporaries = compiled.memory_analysis().temp_size_in_bytes / 2**20
    seconds = time.perf_counter() - began
    return f"{seconds:.1f} s, {words}, {temporaries:.0f} MiB of temporaries"


def main(_: list[str]) -> None:
    """Compiles everything that is asked for."""
    jax.config.update("jax_platforms", "cpu")  # what is compiled for need not be here
    for name in TARGETS.value:
        for head in HEADS.value:
            for tokens in map(int, TOKENS.value):
                print(f"{name:4} {head:12} {tokens:5} tokens: ", end="", flush=True)
                print(compile_for(name, head, tokens), flush=True)


if __name__ == "__main__":
    app.run(main)
