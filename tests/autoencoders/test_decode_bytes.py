"""The memory that decoding is said to take, against XLA's layout of its program."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from nova_jax.autoencoders import codec
from nova_jax.autoencoders.registry import AUTOENCODERS

# Stable Diffusion's; the others are as narrow as they can be.
KL = {"latent_channels": 4, "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
VIDEO = {
    "latent_channels": 4,
    "block_out_channels": (32, 64, 64, 64),
    "layers_per_block": 1,
    "down_block_types": ("Down2D", "Down2D", "Down3D", "Down3D"),
    "up_block_types": ("Up3D",) * 4,
}
COG = {"block_out_channels": (32, 64, 64, 64), "layers_per_block": 1}


@pytest.mark.parametrize(
    ("name", "values", "frames", "sizes"),
    [
        ("AutoencoderKL", KL, 1, (128, 192)),
        ("AutoencoderKLOpenSora", VIDEO, 9, (64, 64)),
        ("AutoencoderKLCogVideoX", COG, 3, (64, 64)),
    ],
)
def test_decoding_takes_about_what_is_said(name, values, frames, sizes):
    entry = AUTOENCODERS[name]
    config = entry.config(**values)
    network = nnx.eval_shape(lambda: entry.network(config, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    whole = codec.AutoencoderCodec(network)
    graph, state = nnx.split(network)
    side = (frames, *(n // whole.stride for n in sizes), whole.latent_channels)
    latents = jax.ShapeDtypeStruct((1, *side), jnp.float32)
    program = codec._run.lower(graph, state, latents, "decode", None).compile()
    needed = program.memory_analysis().temp_size_in_bytes
    assert 0.7 < whole.decode_bytes(frames, sizes) / needed < 1.5
