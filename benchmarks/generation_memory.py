"""Peak memory of released models while they generate, as compiled for machines that are not here.

    python benchmarks/generation_memory.py --topologies=v5e:2x2
    python benchmarks/generation_memory.py --topologies=a100-40g:1,h100:1 --models=osp480

One picture, or one video of 33 frames, with guidance, in bfloat16. The text encoder, the drawing of
all frames and the decoding are compiled at full size for each machine, without values, and the
memory of each is the compiler's. Whole: all parts wait on the device, beside the program that takes
most. Offloaded: `from_pretrained(..., offload=True)`, where a part is there while it works.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import app, flags
from flax import nnx
from releases import PHI_2, RELEASES, configs

from nova_jax.autoencoders.kl import AutoencoderKL, AutoencoderKLConfig
from nova_jax.checkpoints import diffusers
from nova_jax.config import from_dict
from nova_jax.data.batch import abstract_batch
from nova_jax.distributed.memory import device_bytes
from nova_jax.distributed.mesh import make_mesh, replicated
from nova_jax.models import Conditions, Nova
from nova_jax.models.quantization import quantize
from nova_jax.plan.compile import compile_for
from nova_jax.plan.topology import Topology
from nova_jax.sampling.guidance import GuidanceConfig
from nova_jax.sampling.keys import seed_key
from nova_jax.sampling.options import SamplingConfig
from nova_jax.sampling.schedules import FlowMatchingSchedule
from nova_jax.sampling.video import generate_in_one
from nova_jax.text.phi import Phi, PhiConfig

TOPOLOGIES = flags.DEFINE_list("topologies", ["v5e:2x2"], "Machines, see plan; one device is used.")
MODELS = flags.DEFINE_list("models", list(RELEASES), "Which.")
LATENT_FRAMES = 9  # 33 frames
SIZES = (8, 12, 16, 24, 40, 80)
DTYPE = jnp.bfloat16


class Stage(NamedTuple):
    """A part at work: bytes of its parameters, and of all that its program needs besides."""

    parameters: int
    program: int


def abstract(make: Any, sharding: Any) -> tuple[nnx.GraphDef, Any]:
    """A module without its values, what is float in bfloat16 but for scales of 8-bit channels."""
    graph, state = nnx.split(nnx.eval_shape(make))

    def placed(path: Any, leaf: Any) -> Any:
        kept = leaf.dtype == jnp.int8 or "scale" in str(path[-2:]) and leaf.ndim == 1
        return leaf.update(dtype=leaf.dtype if kept else DTYPE, sharding=sharding)

    return graph, jax.tree_util.tree_map_with_path(placed, state)


def stages(name: str, topology: Topology, in_8_bits: bool) -> dict[str, Stage]:
    """Every part of a released model, compiled for a machine."""
    arch = configs(name)
    mesh = make_mesh(topology.devices()[:1])
    here = replicated(mesh)
    size = diffusers.config_from_released(arch["transformer"])
    network = from_dict(AutoencoderKLConfig, arch["vae"], ignore_unknown=True)
    frames = LATENT_FRAMES if size.is_video else 1
    sampling = SamplingConfig(64, 25, GuidanceConfig(scale=5.0))

    def transformer() -> Nova:
        model = Nova(size, rngs=nnx.Rngs(0), dtype=DTYPE)
        return quantize(model) if in_8_bits else model

    def encode(graph: nnx.GraphDef, state: Any, tokens: Any) -> Any:
        return nnx.merge(graph, state)(tokens).astype(jnp.float32)

    def draw(graph: nnx.GraphDef, state: Any, conditions: Conditions, keys: Any) -> Any:
        options: dict[str, Any] = {"frames": frames, "config": sampling, "keys": keys}
        return generate_in_one(
            nnx.merge(graph, state), FlowMatchingSchedule(), conditions, **options
        )

    def decode(graph: nnx.GraphDef, state: Any, latents: Any) -> Any:
        pixels = nnx.merge(graph, state).decode(latents.astype(DTYPE)).astype(jnp.float32)
        return jnp.round(127.5 * (jnp.clip(pixels, -1, 1) + 1)).astype(jnp.uint8)

    given = abstract_batch(size, size=1, frames=1, sharding=here)
    unused = {"latents"} if size.is_video else {"latents", "flow", "fps"}
    conditions = Conditions(**{key: v for key, v in given.items() if key not in unused})
    keys = jax.eval_shape(lambda: jax.vmap(seed_key)(jnp.arange(1))).update(sharding=here)
    array = partial(jax.ShapeDtypeStruct, sharding=here)
    latents = array((1, frames, *size.latent_size, size.latent_channels), jnp.float32)
    work = {
        "text encoder": (
            lambda: Phi(from_dict(PhiConfig, PHI_2), dtype="bfloat16", rngs=nnx.Rngs(0)),
            encode,
            (array((2, size.text_length), jnp.int32),),  # the prompt, and the empty one
        ),
        "transformer": (transformer, draw, (conditions, keys)),
        "autoencoder": (
            lambda: AutoencoderKL(network, dtype="bfloat16", rngs=nnx.Rngs(0)),
            decode,
            (latents,),
        ),
    }
    found = {}
    for part, (make, function, arguments) in work.items():
        graph, state = abstract(make, here)
        sizes = {"parameters": device_bytes(state), "arguments": device_bytes(arguments)}
        program = jax.jit(partial(function, graph))
        plan = compile_for(topology, mesh.mesh, program, (state, *arguments), sizes, "bfloat16", 0)
        found[part] = Stage(sizes["parameters"], plan.peak - sizes["parameters"])
    return found


def rows(found: dict[str, Stage]) -> Iterator[tuple[str, int]]:
    """Ways to keep the parts, and the most memory of each."""
    kept = sum(stage.parameters for stage in found.values())
    yield "whole", kept + max(stage.program for stage in found.values())
    transformer = found["transformer"].parameters
    others = [sum(stage) for part, stage in found.items() if part != "transformer"]
    yield "offloaded", max(sum(found["transformer"]), *(transformer + other for other in others))


def main(_: list[str]) -> None:
    """Prints a table in Markdown, GB of 10^9 bytes."""
    print("| model | machine | blocks | parts, GB: parameters + program | kept | peak, GB | fits |")
    print("|---|---|---|---|---|---:|---|")
    for name in MODELS.value:
        for text in TOPOLOGIES.value:
            for blocks in ("bfloat16", "int8"):
                found = stages(name, Topology.parse(text), blocks == "int8")
                parts = ", ".join(
                    f"{part} {stage.parameters / 1e9:.2f} + {stage.program / 1e9:.2f}"
                    for part, stage in found.items()
                )
                for kept, peak in rows(found):
                    fits = next((f"{size} GB" for size in SIZES if peak < 0.9 * size * 1e9), "none")
                    row = (name, text, blocks, parts, kept, f"{peak / 1e9:.2f}", fits)
                    print("|", " | ".join(row), "|", flush=True)


if __name__ == "__main__":
    app.run(main)
