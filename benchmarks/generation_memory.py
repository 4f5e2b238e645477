"""Peak memory of released models while they generate, on machines that need not be here.

    python benchmarks/generation_memory.py
    python benchmarks/generation_memory.py --topologies=v5e:2x2,h100:1 --models=osp480 --steps=4

One picture, or one video of 33 frames, with guidance, in bfloat16. Counted from sizes, as the
pipeline does before it refuses a request (`nova_jax.budget`); for each of --topologies also
compiled: the text encoder, the drawing of all frames and the decoding at full size, without values,
whose memory is the compiler's. Whole: all parts wait on the device, beside the program that takes
most. Offloaded: `from_pretrained(..., offload=True)`, where a part is there while it works.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import app, flags
from flax import nnx
from jax.sharding import SingleDeviceSharding
from releases import PHI_2, RELEASES, configs

from nova_jax.autoencoders.codec import AutoencoderCodec
from nova_jax.autoencoders.kl import AutoencoderKL, AutoencoderKLConfig
from nova_jax.checkpoints import diffusers
from nova_jax.config import from_dict
from nova_jax.data.batch import abstract_batch
from nova_jax.distributed.machines import MACHINES, Machine
from nova_jax.distributed.memory import device_bytes
from nova_jax.distributed.mesh import MeshLayout, make_mesh, replicated
from nova_jax.kernels.device import target
from nova_jax.models import Conditions, Nova
from nova_jax.models.quantization import quantize
from nova_jax.plan.compile import compile_for
from nova_jax.plan.topology import Topology
from nova_jax.sampling.guidance import GuidanceConfig
from nova_jax.sampling.keys import seed_key
from nova_jax.sampling.memory import generation_bytes
from nova_jax.sampling.options import SamplingConfig
from nova_jax.sampling.schedules import FlowMatchingSchedule
from nova_jax.sampling.video import generate_in_one
from nova_jax.text.phi import Phi, PhiConfig

TOPOLOGIES = flags.DEFINE_list("topologies", [], "Compile for these, see plan; one device is used.")
STEPS = flags.DEFINE_integer("steps", 64, "AR steps; compilation of many takes many minutes.")
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


class Release:
    """A released model without its values.

    Attributes:
        parts: of each, its graph and state.
        size, network: the transformer's and the autoencoder's sizes.
        frames: latent frames that are drawn.
        sampling: how.
    """

    def __init__(self, name: str, in_8_bits: bool, sharding: Any) -> None:
        arch = configs(name)
        self.size = size = diffusers.config_from_released(arch["transformer"])
        network = from_dict(AutoencoderKLConfig, arch["vae"], ignore_unknown=True)
        phi = from_dict(PhiConfig, PHI_2)
        self.frames = LATENT_FRAMES if size.is_video else 1
        self.sampling = SamplingConfig(STEPS.value, 25, GuidanceConfig(scale=5.0))

        def transformer() -> Nova:
            model = Nova(size, rngs=nnx.Rngs(0), dtype=DTYPE)
            return quantize(model) if in_8_bits else model

        makes: dict[str, Callable[[], nnx.Module]] = {
            "text encoder": lambda: Phi(phi, dtype="bfloat16", rngs=nnx.Rngs(0)),
            "transformer": transformer,
            "autoencoder": lambda: AutoencoderKL(network, dtype="bfloat16", rngs=nnx.Rngs(0)),
        }
        self.parts = {part: abstract(make, sharding) for part, make in makes.items()}

    def counted(self, machine: Machine) -> dict[str, Stage]:
        """Every part, from sizes."""
        bytes_of = {part: device_bytes(state) for part, (_, state) in self.parts.items()}
        codec = AutoencoderCodec(nnx.merge(*self.parts["autoencoder"]))
        height, width = (side * codec.stride for side in self.size.latent_size)
        pixels = 3 * codec.pixel_frames(self.frames) * height * width
        with target(machine.target):
            draw = generation_bytes(
                self.size,
                FlowMatchingSchedule(),
                self.sampling,
                samples=1,
                frames=self.frames,
                itemsize=2,
                parameters=bytes_of["transformer"],
            )
            decode = codec.decode_bytes(self.frames, (height, width)) + 13 * pixels
        programs = {"text encoder": 0.0, "transformer": draw, "autoencoder": decode}
        return {part: Stage(bytes_of[part], round(programs[part])) for part in self.parts}

    def compiled(self, topology: Topology, mesh: MeshLayout) -> dict[str, Stage]:
        """Every part, compiled."""
        size, here = self.size, replicated(mesh)

        def encode(graph: nnx.GraphDef, state: Any, tokens: Any) -> Any:
            return nnx.merge(graph, state)(tokens).astype(jnp.float32)

        def draw(graph: nnx.GraphDef, state: Any, conditions: Conditions, keys: Any) -> Any:
            model, options = nnx.merge(graph, state), {"frames": self.frames, "keys": keys}
            schedule, options["config"] = FlowMatchingSchedule(), self.sampling
            return generate_in_one(model, schedule, conditions, **options)

        def decode(graph: nnx.GraphDef, state: Any, latents: Any) -> Any:
            pixels = nnx.merge(graph, state).decode(latents.astype(DTYPE)).astype(jnp.float32)
            return jnp.round(127.5 * (jnp.clip(pixels, -1, 1) + 1)).astype(jnp.uint8)

        given = abstract_batch(size, size=1, frames=1, sharding=here)
        unused = {"latents"} if size.is_video else {"latents", "flow", "fps"}
        conditions = Conditions(**{key: v for key, v in given.items() if key not in unused})
        keys = jax.eval_shape(lambda: jax.vmap(seed_key)(jnp.arange(1))).update(sharding=here)
        array = partial(jax.ShapeDtypeStruct, sharding=here)
        tokens = array((2, size.text_length), jnp.int32)  # the prompt, and the empty one
        latents = array((1, self.frames, *size.latent_size, size.latent_channels), jnp.float32)
        work = {
            "text encoder": (encode, (tokens,)),
            "transformer": (draw, (conditions, keys)),
            "autoencoder": (decode, (latents,)),
        }
        found = {}
        for part, (function, arguments) in work.items():
            graph, state = self.parts[part]
            sizes = {"parameters": device_bytes(state), "arguments": device_bytes(arguments)}
            program, arguments = jax.jit(partial(function, graph)), (state, *arguments)
            plan = compile_for(topology, mesh.mesh, program, arguments, sizes, "bfloat16", 0)
            found[part] = Stage(sizes["parameters"], plan.peak - sizes["parameters"])
        return found


def rows(found: dict[str, Stage]) -> Iterator[tuple[str, int]]:
    """Ways to keep the parts, and the most memory of each."""
    kept = sum(stage.parameters for stage in found.values())
    yield "whole", kept + max(stage.program for stage in found.values())
    transformer = found["transformer"].parameters
    others = [sum(stage) for part, stage in found.items() if part != "transformer"]
    yield "offloaded", max(sum(found["transformer"]), *(transformer + other for other in others))


def show(name: str, how: str, blocks: str, found: dict[str, Stage]) -> None:
    """Prints a row for each way to keep the parts."""
    parts = ", ".join(
        f"{part} {stage.parameters / 1e9:.2f} + {stage.program / 1e9:.2f}"
        for part, stage in found.items()
    )
    for kept, peak in rows(found):
        fits = next((f"{size} GB" for size in SIZES if peak < 0.9 * size * 1e9), "none")
        row = (name, how, blocks, parts, kept, f"{peak / 1e9:.2f}", fits)
        print("|", " | ".join(row), "|", flush=True)


def main(_: list[str]) -> None:
    """Prints a table in Markdown, GB of 10^9 bytes; nine tenths of a device may be used."""
    print("| model | by | blocks | parts, GB: parameters + program | kept | peak, GB | fits |")
    print("|---|---|---|---|---|---:|---|")
    topologies = [Topology.parse(text) for text in TOPOLOGIES.value]
    for name in MODELS.value:
        for blocks in ("bfloat16", "int8"):
            release = Release(name, blocks == "int8", SingleDeviceSharding(jax.devices()[0]))
            show(name, "count", blocks, release.counted(MACHINES["h100"]))
            for topology in topologies:
                mesh = make_mesh(topology.devices()[:1])
                release = Release(name, blocks == "int8", replicated(mesh))
                show(name, str(topology), blocks, release.compiled(topology, mesh))


if __name__ == "__main__":
    app.run(main)
