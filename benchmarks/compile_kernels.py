"""Compiles the sampler's kernels for accelerators that are not here.

    python benchmarks/compile_kernels.py --targets=v5e,v5p,v6e,v4

Real code generation by XLA and Mosaic (needs libtpu; for GPUs jax-cuda13-plugin and
jax-cuda13-pjrt): what does not lower or does not fit fails here. Nothing is run.
"""

import os
import time

# Before jax is imported: libtpu must not look for a TPU machine.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import nnx
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nova_jax.kernels.diffusion_sampler import reference, tpu
from nova_jax.models import NovaConfig
from nova_jax.models.diffusion_head import DiffusionHead
from nova_jax.sampling.schedules import FlowMatchingSchedule

# VMEM of a core in MiB, and the smallest topology.
TPUS = {
    "v4": (16, "v4:2x2x1"),
    "v5e": (128, "v5e:2x2"),
    "v5p": (64, "v5p:2x2x1"),
    "v6e": (128, "v6e:2x2"),
}
TARGETS = flags.DEFINE_list("targets", list(TPUS), "Which: " + ", ".join(TPUS))
HEADS = flags.DEFINE_list("heads", ["mlp_d3w1280", "mlp_d6w1024"], "Diffusion heads.")
TOKENS = flags.DEFINE_list("tokens", ["32"], "Tokens of a set, padded.")
RENORM = flags.DEFINE_float("renorm", 1.0, "Lower bound of renormalization; 1: off.")


def compile_for_tpu(name: str, head_size: str, tokens: int) -> str:
    """Compiles the kernel for a TPU; says how long it took and how it uses VMEM."""
    vmem, topology = TPUS[name]
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    sharding = NamedSharding(Mesh(np.array(devices[:1]), ("d",)), PartitionSpec())
    config = NovaConfig(
        latent_size=(60, 96),
        temporal_encoder="vit_d1w1024",
        spatial_decoder="vit_d2w1024",
        diffusion_head=head_size,
        text_dim=2560,
        text_length=256,
    )
    head = nnx.eval_shape(lambda: DiffusionHead(config, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(head)
    steps, guidance = FlowMatchingSchedule().sampling_steps(25), reference.Guidance(2, RENORM.value)

    def run(state, features, x, gram):
        head = nnx.merge(graph, state)
        outside = None
        if guidance.renormalized:
            outside = reference.Outside(jnp.ones((1, 1)), gram)
        modulations = reference.modulate(head, features, jnp.asarray(steps.time))
        valid = jnp.ones(tokens)
        options = {"vmem": vmem * 2**20}
        arguments = (head, modulations, (x, outside), steps, guidance, 5.0, valid, 0, None)
        return tpu.sample(*arguments, **options)[0]

    def abstract(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    state = jax.tree.map(lambda leaf: abstract(leaf.shape, jnp.bfloat16), state)
    features = abstract((2, tokens, head.width), jnp.bfloat16)
    x, gram = abstract((1, tokens, 16), jnp.float32), abstract((1, 1, 1), jnp.float32)
    began = time.perf_counter()
    compiled = jax.jit(run).lower(state, features, x, gram).compile()
    how = tpu.plan(
        rows=tokens,
        passes=2,
        width=head.width,
        depth=head.depth,
        itemsize=2,
        noise=False,
        vmem=int(0.9 * vmem * 2**20),
    )
    kept = "resident" if how.resident else f"streamed, {how.buffers} buffers"
    temporaries = compiled.memory_analysis().temp_size_in_bytes / 2**20
    return (
        f"{time.perf_counter() - began:.1f} s, weights {kept}, tiles of {how.tile}, "
        f"{how.bytes / 2**20:.0f} of {vmem} MiB VMEM planned, {temporaries:.0f} MiB HBM temporaries"
    )


def main(_: list[str]) -> None:
    """Compiles everything that is asked for."""
    for name in TARGETS.value:
        for head in HEADS.value:
            for tokens in map(int, TOKENS.value):
                print(f"{name:4} {head:12} {tokens:5} tokens: ", end="", flush=True)
                print(compile_for_tpu(name, head, tokens), flush=True)


if __name__ == "__main__":
    app.run(main)
