"""Compiles attention for a TPU that is not here, plain and by tiles, and says what each costs.

    python benchmarks/attention_compiled.py --topologies=v5e:2x2,v6e:2x2

One layer's attention at the sizes of the released video model, bfloat16, one chip of each slice:
the spatial decoder's over a frame, and the temporal encoder's over a video. FLOPs and bytes are
read from the compiled program (`nova_jax.plan.costs`), time is their roofline; nothing is run.
"""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nova_jax.kernels import attention as kernels
from nova_jax.plan.compile import Plan, compile_for
from nova_jax.plan.topology import Topology

TOPOLOGIES = flags.DEFINE_list("topologies", ["v5e:2x2", "v6e:2x2"], "Slices of TPUs.")

HEADS, CHANNELS = 16, 64
FRAME = 360 + 1440  # indicator tokens and spatial tokens at 480 x 768
VIDEO = (258 + 360, *(360,) * 8)  # text, motion and the first frame; then a block a frame
# Name: sequences, tokens, what is seen, whether with gradients.
CASES = {
    "frame, with guidance": (2, FRAME, None, False),
    "2 videos' frames, training": (18, FRAME, None, True),
    "2 videos, training": (2, sum(VIDEO), VIDEO, True),
}


def plan(topology: Topology, name: str) -> Plan:
    """Compiles a case for one chip."""
    sequences, tokens, seen, training = CASES[name]
    mesh = Mesh(np.array(topology.devices()[:1]), ("chip",))
    shape = (sequences, tokens, HEADS, CHANNELS)
    sharding = NamedSharding(mesh, PartitionSpec())
    array = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)

    def forward(query, key, value):
        return kernels.attention(query, key, value, seen)

    def both(query, key, value, gradient):
        return jax.vjp(forward, query, key, value)[1](gradient)

    arrays = [array] * (4 if training else 3)
    function = jax.jit(both if training else forward)
    return compile_for(topology, mesh, function, arrays, {}, "bfloat16", 0.0)


def main(_: list[str]) -> None:
    """Prints a line for each case and way."""
    jax.config.update("jax_platforms", "cpu")
    print("| | TFLOP | GB | MB of temporaries | compute and memory, ms | compilation, s |")
    for topology in map(Topology.parse, TOPOLOGIES.value):
        for name in CASES:
            for way, least in (("plain", 10**12), ("tiles", kernels._TILED)):
                with mock.patch.object(kernels, "_TILED", least):
                    found = plan(topology, name)
                assert found.costs is not None
                print(
                    f"| {topology.kind}, {name}: {way} | {found.costs.flops / 1e12:.3f} "
                    f"| {found.costs.bytes / 1e9:.2f} | {found.temporaries / 1e6:.0f} "
                    f"| {1e3 * found.seconds['compute']:.2f} and "
                    f"{1e3 * found.seconds['memory']:.2f} | {found.compile_seconds:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    app.run(main)
